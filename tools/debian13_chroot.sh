#!/usr/bin/env bash
# The two README commands on a bare Debian 13: a fresh system in a temporary folder, with a clean clone of HEAD
# in it, where ./setup.sh and ./test.sh run. Takes root, about 3 GB of disk, and 20 minutes on 2 cores.
#
#   tools/debian13_chroot.sh [--keep] [--shell] [COMMAND]   COMMAND instead of './setup.sh && ./test.sh'
#
# Packages come from the mirror that this machine's own apt uses, or from $DEBIAN_MIRROR.
set -euo pipefail
cd "$(dirname "$0")/.."

keep=''
command='./setup.sh && ./test.sh'
while [ $# -gt 0 ]; do
  case $1 in
    --keep) keep=1 ;;
    --shell) command='bash -i' ;;
    *) command=$1 ;;
  esac
  shift
done

if [ "$(id -u)" != 0 ]; then
  echo "debian13_chroot: run it as root" >&2
  exit 1
fi
# In a mount namespace of its own, so that no mount outlives the script, and removing the folder removes no more.
if [ -z "${in_own_namespace:-}" ]; then
  in_own_namespace=1 exec unshare --mount --propagation private \
    "$PWD/tools/debian13_chroot.sh" ${keep:+--keep} "$command"
fi
command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >&2
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)}
if [ -z "$mirror" ]; then
  echo "debian13_chroot: this machine's apt names no Debian mirror; set DEBIAN_MIRROR" >&2
  exit 1
fi

folder=$(mktemp -d)
root=$folder/debian13
finish() {
  umount -R "$root/proc" "$root/sys" "$root/dev/shm" "$root/dev/pts" 2>/dev/null || true
  if [ -n "$keep" ]; then
    echo "kept: $root" >&2
  else
    rm -rf --one-file-system "$folder"
  fi
}
trap finish EXIT

debootstrap --variant=minbase --include=git trixie "$root" "$mirror" >"$folder/debootstrap.log" ||
  { tail "$folder/debootstrap.log" >&2; exit 1; }
# Proxies and the like, as on this machine.
apt-config dump | grep -E '^Acquire::(http|https|Check)' >"$root/etc/apt/apt.conf.d/99-as-outside" || true
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys" # where Open MPI looks for cores
mkdir -p "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts" # for tests of what a terminal shows
ln -sf pts/ptmx "$root/dev/ptmx"
git clone -q --no-hardlinks . "$root/weft"

began=$SECONDS code=0
chroot "$root" /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  bash -c "cd /weft && $command" || code=$?
echo "debian13_chroot: exit code $code after $(((SECONDS - began + 30) / 60)) minutes" >&2
exit $code
