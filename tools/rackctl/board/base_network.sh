#!/bin/busybox sh
# Gives the board its name and its network: what the sled was told on its console goes before what provisioning said.
# Run at power-on and before each start of the firmware, which the console may have asked for.
. /sled/board.sh

# told KEY PATTERN: what the console was given, as sled-controller has checked and written it.
told() {
    sed -n "s/.*\"$1\": *\"\($2\)\".*/\1/p" /sled/state/provisioned.json 2>/dev/null
}

name_told=$(told name '[A-Za-z0-9._-]*')
network_told=$(told network '[0-9a-fA-F.:/,dhcp]*')
name=${name_told:-$name}
network=${network_told:-$network}

[ "$name $network" != "$(cat /run/network 2>/dev/null)" ] || exit 0
hostname "$name"
[ ! -f /run/udhcpc.pid ] || kill "$(cat /run/udhcpc.pid)"
ip addr flush dev eth0
ip link set eth0 up
if [ "$network" = dhcp ]; then
    udhcpc -q -b -p /run/udhcpc.pid -i eth0 -s /etc/udhcpc.sh >/dev/null
else
    gateway=${network#*,}
    ip addr add "${network%%,*}" dev eth0
    [ "$gateway" = "$network" ] || ip route replace default via "$gateway"
fi
echo "$name $network" >/run/network
echo "base: name=$name network=$network"
