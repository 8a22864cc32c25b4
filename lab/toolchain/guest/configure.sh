#!/bin/sh
# Runs inside the new root file system (chroot, own mount and PID namespace): installs the packages
# and makes the tree fit to be cloned. Refuses nothing: the caller has checked the machine.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Nothing may start while packages are configured, and nothing needs to survive a power cut yet.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/build-speed
cat >/etc/dpkg/dpkg.cfg.d/slim <<'SLIM'
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
SLIM

apt-get -q -o Acquire::Retries=5 update
# shellcheck disable=SC2046
apt-get -q -y -o Acquire::Retries=5 -o Dpkg::Use-Pty=0 install --no-install-recommends \
    $(sed 's/#.*//' /build/packages.txt)

# Configured by the roles, off until then.
systemctl disable keepalived.service auditd.service nftables.service nginx.service >/dev/null 2>&1
systemctl mask apt-daily.timer apt-daily-upgrade.timer >/dev/null 2>&1
systemctl disable e2scrub_all.timer fstrim.timer xfs_scrub_all.timer getty@tty1.service >/dev/null 2>&1 || true
systemctl enable systemd-networkd.service systemd-resolved.service ssh.service >/dev/null 2>&1

# A clone must make its own identity.
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: >/etc/machine-id
echo localhost >/etc/hostname

# Guests have no internet.
rm -f /etc/apt/sources.list.d/* /etc/dpkg/dpkg.cfg.d/build-speed /usr/sbin/policy-rc.d
: >/etc/apt/sources.list
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/apt/* /var/log/dpkg.log /var/log/bootstrap.log \
    /var/log/alternatives.log /tmp/* /var/tmp/* /var/cache/debconf/*-old /usr/share/man
mkdir -p /usr/share/man/man1 /var/log/journal
rm -rf /var/lib/cloud
mkdir -p /var/lib/cloud/seed/nocloud
rm -f /etc/resolv.conf
ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
