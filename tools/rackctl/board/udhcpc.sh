#!/bin/busybox sh
# What udhcpc calls with what a DHCP server has answered, for as long as the lease is renewed.
case $1 in
deconfig)
    ip addr flush dev "$interface" scope global
    ;;
bound | renew)
    ip addr flush dev "$interface" scope global
    ip addr add "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface"
    [ "$1" = renew ] || echo "base: address=$ip/$mask" >/dev/console
    ;;
esac
