# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Debian packages for tests and examples. To be sourced by bash.

# cowsnap_apt_missing PACKAGE... - print those that are not installed
cowsnap_apt_missing() {
	local package
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null |
			grep -qx installed ||
			echo "$package"
	done
}

# cowsnap_apt_install PACKAGE... - install what is missing, as root or through sudo
cowsnap_apt_install() {
	local missing as_root=()
	mapfile -t missing < <(cowsnap_apt_missing "$@")
	((${#missing[@]} > 0)) || return 0
	if ((EUID != 0)); then
		command -v sudo >/dev/null || {
			echo "missing, and only root can install them: ${missing[*]}" >&2
			return 1
		}
		as_root=(sudo)
	fi
	echo "installing ${missing[*]}"
	"${as_root[@]}" apt-get update -qq
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
