/* SPDX-License-Identifier: MIT
 *
 * A host that knows nothing of cowsnap and was not built with jemalloc: it loads the library at run
 * time, uses it, and still has its own malloc.
 *
 *     host LIBRARY
 */
#include <cowsnap.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, const char *detail)
{
	fprintf(stderr, "host: %s: %s\n", what, detail ? detail : "");
	return 1;
}

/* The file that a symbol of the whole process comes from. */
static const char *provider(const char *symbol)
{
	Dl_info info;
	void *address = dlsym(RTLD_DEFAULT, symbol);

	return address && dladdr(address, &info) ? info.dli_fname : NULL;
}

int main(int argc, char **argv)
{
	const char *before = provider("malloc");
	const char *(*version)(void);
	void *library;
	void *block;

	if (argc != 2)
		return fail("usage", "host LIBRARY");
	if (!before || !strstr(before, "libc.so"))
		return fail("malloc is not libc's before loading", before);
	block = malloc(100);
	library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
	if (!library)
		return fail("dlopen", dlerror());
	*(void **)&version = dlsym(library, "cowsnap_version");
	if (!version || strcmp(version(), COWSNAP_VERSION_TEXT) != 0)
		return fail("cowsnap_version", version ? version() : dlerror());
	if (provider("malloc") != before)
		return fail("malloc has changed to", provider("malloc"));
	if (provider("mallocx"))
		return fail("jemalloc came along", provider("mallocx"));
	free(block);
	if (dlclose(library) != 0)
		return fail("dlclose", dlerror());
	return 0;
}
