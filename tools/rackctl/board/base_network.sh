#!/bin/busybox sh
# Gives the board its name and its network: what the sled was told on its console goes before what provisioning said.
# Run at power-on and before each start of the firmware, which the console may have asked for. Ends with 1 when the
# network is not there; the next start tries again.
. /sled/board.sh
kept=/sled/state/provisioned.json
in_force=/run/network
client=/run/udhcpc.pid

# told KEY PATTERN: what the console was given, as sled-controller has checked and written it.
told() {
    sed -n "s/.*\"$1\": *\"\($2\)\".*/\1/p" "$kept"
}

fail() {
    echo "base: network: $1"
    exit 1
}

if [ -f "$kept" ]; then
    name_told=$(told name '[A-Za-z0-9][A-Za-z0-9._-]*')
    network_told=$(told network '[0-9a-fA-F.:/,]*\|dhcp')
    [ -n "$name_told" ] && [ -n "$network_told" ] || echo "base: network: provisioned.json says none"
    name=${name_told:-$name}
    network=${network_told:-$network}
fi

[ "$name $network" != "$(cat "$in_force" 2>/dev/null)" ] || exit 0
rm -f "$in_force"
hostname "$name"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ ! -e /sys/class/net/eth0 ] || break
    sleep 0.5
done
[ -e /sys/class/net/eth0 ] || fail "there is no eth0"
if [ -f "$client" ]; then
    old=$(cat "$client")
    kill "$old"
    while kill -0 "$old" 2>/dev/null; do sleep 0.1; done
    rm -f "$client"
fi
# Down and up again: addresses and routes of both families go, and the kernel's own link-local address is back.
ip link set eth0 down
ip addr flush dev eth0
ip link set eth0 up || fail "eth0 cannot be had"
if [ "$network" = dhcp ]; then
    udhcpc -b -p "$client" -i eth0 -s /etc/udhcpc.sh >/dev/null || fail "no DHCP client"
else
    gateway=${network#*,}
    ip addr add "${network%%,*}" dev eth0 || fail "the address is not taken"
    [ "$gateway" = "$network" ] || ip route add default via "$gateway" dev eth0 || fail "the gateway is not taken"
fi
echo "$name $network" >"$in_force"
echo "base: name=$name network=$network"
