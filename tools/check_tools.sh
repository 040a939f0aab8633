#!/bin/sh
# Says which of the things that a build needs are missing on this machine, and the line that installs them.
# Usage: tools/check_tools.sh [PYTHON]
python=${1:-python3}
package=python3 # what Debian calls the packages of this Python
packages=

missing() { # WHAT PACKAGE...
    echo "fastmmu: missing: $1" >&2
    shift
    packages="$packages $*"
}

probe() { "$python" -c "import os, sys, sysconfig; sys.exit(not ($1))" 2>/dev/null; }

if ! probe True; then
    missing "Python 3.11 or newer ($python)" python3
    missing "Python's venv module" python3-venv
    missing "Python's C headers (Python.h)" python3-dev
    cc=${CC:-cc}
elif ! probe 'sys.version_info >= (3, 11)'; then
    echo "fastmmu: $python is $("$python" --version 2>&1), but 3.11 or newer is needed." >&2
    echo "fastmmu: name another one, for example: make PYTHON=python3.13" >&2
    exit 1
else
    debian=$(readlink -f /usr/bin/python3)
    this=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    case $this in
        "$debian") ;;
        /usr/bin/python3.*) package=${this#/usr/bin/} ;;
    esac
    probe '__import__("venv") and __import__("ensurepip")' || missing "Python's venv module" "$package-venv"
    probe 'os.path.exists(sysconfig.get_path("include") + "/Python.h")' ||
        missing "Python's C headers (Python.h)" "$package-dev"
    cc=${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC").split()[0])')}
fi

if ! command -v "${cc%% *}" >/dev/null 2>&1; then
    missing "a C compiler (${cc%% *})" gcc libc6-dev
elif ! echo '#include <stdlib.h>' | $cc -E - >/dev/null 2>&1; then
    missing "the C library's headers (stdlib.h)" libc6-dev
fi

[ -z "$packages" ] && exit 0
echo "fastmmu: on Debian or Ubuntu this line installs what is missing:" >&2
echo "    sudo apt-get install$packages" >&2
exit 1
