#!/bin/sh
# Installs what the tests run against: OpenLDAP, Samba, 389 Directory Server,
# Prometheus, and the tools to look at them; and Cerbos where there is npm. Does nothing, and says nothing,
# when all of it is there. On systems other than Debian it names what is missing.
set -eu
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# Cerbos comes as a binary by npm, and by nothing else that is here. No script of
# the package runs, and the lock file pins it to the byte. What cannot be
# installed is not missed: its tests skip, and say so.
cerbos=.cache/cerbos
if have npm && ! cmp -s tools/cerbos/package-lock.json "$cerbos/package-lock.json"; then
	rm -rf "$cerbos"
	mkdir -p "$cerbos"
	cp tools/cerbos/package.json "$cerbos/"
	cp tools/cerbos/package-lock.json "$cerbos/"
	if (cd "$cerbos" && timeout 120 npm ci --ignore-scripts --no-audit --no-fund --fetch-retries 0 >npm.log 2>&1); then
		echo "deps: installed Cerbos"
	else
		rm -f "$cerbos/package-lock.json"
		echo "deps: npm cannot install Cerbos, its tests will be skipped: see $cerbos/npm.log"
	fi
fi

# program:package
missing= packages=
for pair in slapd:slapd slapadd:slapd ldapsearch:ldap-utils openssl:openssl \
	samba:samba-ad-dc ns-slapd:389-ds-base prometheus:prometheus ip:iproute2 gcc:gcc curl:curl python3:python3; do
	if ! have "${pair%%:*}"; then
		missing="$missing ${pair%%:*}"
		case " $packages " in *" ${pair#*:} "*) ;; *) packages="$packages ${pair#*:}" ;; esac
	fi
done
# What a domain controller of Samba is made with comes in packages of its own,
# as files that no program's name gives away.
for pair in '/usr/share/samba/setup/provision.ldif:samba-ad-provision' \
	'/usr/lib/*/samba/ldb/samldb.so:samba-dsdb-modules' \
	'/usr/lib/python3/dist-packages/samba/provision/__init__.py:python3-samba'; do
	# shellcheck disable=SC2086 # the pattern is to expand
	if ! ls ${pair%%:*} >/dev/null 2>&1; then
		missing="$missing ${pair#*:}"
		packages="$packages ${pair#*:}"
	fi
done
# The race detector links against the C library.
if [ ! -e /usr/include/stdlib.h ]; then
	missing="$missing libc-headers"
	packages="$packages libc6-dev"
fi
[ -n "$missing" ] || exit 0

if ! have apt-get; then
	echo "deps: missing:$missing; install them with your system's package manager" >&2
	exit 1
fi

root=
if [ "$(id -u)" != 0 ]; then
	have sudo || { echo "deps: missing:$missing; install as root:$packages" >&2; exit 1; }
	root=sudo
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made=
cleanup() {
	if [ -n "$made" ]; then $root rm -f "$policy"; fi
	rm -f "$log"
}
trap cleanup EXIT

quietly() {
	if ! "$@" >"$log" 2>&1 </dev/null; then
		cat "$log" >&2
		echo "deps: failed: $*" >&2
		exit 1
	fi
}

# The tests start servers of their own, on ports of their own. The packages'
# services are neither started now (policy-rc.d) nor at the next boot.
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
	$root chmod 755 "$policy"
	made=1
fi

echo "deps: installing$packages"
quietly $root apt-get -q update
# shellcheck disable=SC2086 # a list of packages
quietly $root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $packages
for pair in slapd:slapd prometheus:prometheus smbd:samba-ad-dc nmbd:samba-ad-dc samba-ad-dc:samba-ad-dc; do
	case " $packages " in *" ${pair#*:} "*)
		if [ -d /run/systemd/system ] && systemctl cat "${pair%%:*}" >/dev/null 2>&1; then
			quietly $root systemctl disable --now "${pair%%:*}"
		fi ;;
	esac
done
