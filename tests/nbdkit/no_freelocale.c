/* SPDX-License-Identifier: MIT
 *
 * To be preloaded into nbdkit together with libasan, which a plug-in with AddressSanitizer needs.
 * Debian 12's nbdkit loads p11-kit, which frees a locale when the program ends. With libasan
 * preloaded, glibc's lock for locales is unbalanced before main() begins, and after any strerror()
 * that call waits for ever. Nothing here needs the locale freed.
 */
#include <locale.h>

void freelocale(locale_t locale)
{
	(void)locale;
}
