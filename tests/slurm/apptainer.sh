#!/usr/bin/env bash
# Apptainer on Debian stable, for tests. Needs root, but neither setuid nor systemd.
#
#   apptainer.sh DIR    make DIR/usr/bin/apptainer from Debian's packages (idempotent)
#
# Only Debian unstable has the package, and it needs newer libraries than stable has: it gets its own, in DIR/lib.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,6p' "$0" | cut -c3-; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd -P)
! "$dir/usr/bin/apptainer" --version 2>/dev/null || exit 0

rm -rf "${dir:?}"/{usr,etc,lib,apt} # of an attempt that failed
exec 3>&1 4>&2 >"$dir/install.log" 2>&1
trap '[ $? = 0 ] || { echo "apptainer.sh: not installed; $dir/install.log ends with:"; tail -n 5 "$dir/install.log"; } >&4' EXIT
export DEBIAN_FRONTEND=noninteractive
missing=()
command -v patchelf || missing+=(patchelf)
command -v mksquashfs || missing+=(squashfs-tools)
if [ ${#missing[@]} -gt 0 ]; then apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; fi

# apt with folders of its own, and unstable of the archive that this machine already uses
apt=$dir/apt
mkdir -p "$apt"/{parts,lists/partial,cache/archives/partial}
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | sed -n 1p)
printf '%s\n' 'Types: deb' "URIs: $archive" 'Suites: unstable' 'Components: main' \
  'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' >"$apt/parts/unstable.sources"
options=(-oDir::Etc::SourceList=/dev/null -oDir::Etc::SourceParts="$apt/parts" -oDir::State::Lists="$apt/lists"
  -oDir::Cache="$apt/cache" -oAPT::Sandbox::User=root)
apt-get "${options[@]}" update
(cd "$apt" && apt-get "${options[@]}" download apptainer libc6 libseccomp2 libsqlite3-0)
dpkg -x "$apt"/apptainer_*.deb "$dir"
for package in "$apt"/lib*.deb; do dpkg -x "$package" "$apt/libraries"; done
mkdir -p "$dir/lib"
cp -a "$apt"/libraries/usr/lib/*-linux-gnu*/*.so* "$dir/lib/"
for program in "$dir"/usr/bin/apptainer "$dir"/usr/lib/*/apptainer/bin/starter; do
  patchelf --set-interpreter "$(echo "$dir"/lib/ld-linux-*)" --force-rpath --set-rpath "$dir/lib" "$program"
done
# It looks for its configuration and its session folder beside its programs.
mv "$dir/etc" "$dir/usr/etc"
mkdir -p "$dir/usr/var/lib/apptainer/mnt/session"
ln -sfn ../etc "$dir/usr/lib/etc"
ln -sfn ../var "$dir/usr/lib/var"
# It asks for all capabilities, which root in a container does not have.
sed -i 's/^root default capabilities = .*/root default capabilities = no/' "$dir/usr/etc/apptainer/apptainer.conf"
rm -rf "$apt"
"$dir/usr/bin/apptainer" --version >&3
