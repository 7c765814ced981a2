#!/usr/bin/env bash
# build_connect.sh LIBRARY: makes the NCBI C++ Toolkit's CONNECT library with its shared-memory
# mapper, from the unchanged source of Debian's BLAST+ package.  Packaged libraries have a stub in
# place of that mapper.  Needs gcc, xz, and a Debian mirror (DEBIAN_MIRROR); no root.  Does nothing
# when LIBRARY is there already.
set -eu
library=$(realpath -m "$1")
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
[ ! -e "$library" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial cache/archives/partial include objects
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb-src [signed-by=$keys] $mirror trixie main" > sources.list
apt() {
  apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User= "$@"
}
apt update
apt source --download-only --only-source ncbi-blast+/trixie
tar xJf ./*.orig.tar.xz --strip-components=2 --wildcards '*/c++/include' '*/c++/src/connect'

# What its configure script would find out, as far as these files ask.
cat > include/ncbiconf_unix.h <<'END'
#ifndef WITHOUT_TLS_LIBRARY
#  define NCBI_CXX_TOOLKIT 1
#endif
#define NCBI_OS "UNIX"
#define NCBI_OS_UNIX 1
#define NCBI_OS_LINUX 1
#define NCBI_COMPILER "GCC"
#define NCBI_COMPILER_GCC 1
#define NCBI_COMPILER_VERSION 1200
#define NCBI_PLATFORM_BITS 64
#define NCBI_FORCEINLINE inline __attribute__((always_inline))
#define NCBI_RESTRICT_C __restrict__
#define NCBI_TLS_VAR __thread
#define NCBI_SIGNATURE "test"
#define HOST "linux"
#define NCBI_HAVE_GETHOSTBYADDR_R 8
#define NCBI_HAVE_GETHOSTBYNAME_R 6
#define NCBI_HAVE_GETPWUID_R 5
#define NCBI_HAVE_READDIR_R 3
#define HAVE_GETADDRINFO 1
#define HAVE_GETLOGIN_R 1
#define HAVE_GETNAMEINFO 1
#define HAVE_GETPAGESIZE 1
#define HAVE_GETPWUID 1
#define HAVE_INTTYPES_H 1
#define HAVE_LIMITS 1
#define HAVE_LOCALTIME_R 1
#define HAVE_MEMRCHR 1
#define HAVE_NANOSLEEP 1
#define HAVE_POLL_H 1
#define HAVE_SETENV 1
#define HAVE_SOCKLEN_T 1
#define HAVE_STRCASECMP 1
#define HAVE_STRDUP 1
#define HAVE_STRNDUP 1
#define HAVE_STRNLEN 1
#define HAVE_SYS_RESOURCE_H 1
#define HAVE_SYS_SYSINFO_H 1
#define HAVE_TIMEGM 1
#define HAVE_UNISTD_H 1
#define HAVE_VSNPRINTF 1
#define SIZEOF_CHAR 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 8
#define SIZEOF_LONG_LONG 8
#define SIZEOF_FLOAT 4
#define SIZEOF_DOUBLE 8
#define SIZEOF_LONG_DOUBLE 16
#define SIZEOF_SIZE_T 8
#define SIZEOF_VOIDP 8
#define SIZEOF___INT64 0
END

cd src/connect
export work
compile() { # the TLS files would want the toolkit's own TLS library
  local without=
  [[ $1 != *tls.c ]] || without=-DWITHOUT_TLS_LIBRARY
  gcc -c -fPIC -O1 -w -D_MT -D_REENTRANT $without ${CFLAGS:--DNDEBUG} \
    -I"$work/include" -I. "$1" -o "$work/objects/$1.o"
}
export -f compile
printf '%s\n' *.c | xargs -P 2 -I '{}' bash -c 'compile {}'
mkdir -p "$(dirname "$library")"
gcc -shared -o "$library.new" "$work"/objects/*.o -lm -lpthread
mv "$library.new" "$library"
