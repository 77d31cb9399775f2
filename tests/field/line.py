#!/usr/bin/env python3
"""A line with a delay, a rate and a queue, for kernels without netem: two TUN interfaces and this between them.

line.py NEAR FAR PROCESS DELAY_MS BYTES_PER_SECOND QUEUE_BYTES: makes the interfaces NEAR here and FAR in the network
namespace of PROCESS. Each way a packet waits for those before it, takes its time at the rate, and arrives after the
delay; what finds the queue full is dropped. Ends when stdin does.
"""

import collections
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001


def interface(name):
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN_NO_PI))
    return tun


class Way:
    """One direction."""

    def __init__(self, source, target, delay, rate, room):
        self.source, self.target = source, target
        self.delay, self.rate, self.room = delay, rate, room
        # When the last packet has left, and those that are under way: (left at, packet).
        self.free_at = 0.0
        self.under_way = collections.deque()

    def take(self, now):
        packet = os.read(self.source, 65536)
        backlog = max(0.0, self.free_at - now) * self.rate
        if backlog + len(packet) > self.room:
            return
        self.free_at = max(now, self.free_at) + len(packet) / self.rate
        self.under_way.append((self.free_at + self.delay, packet))

    def give(self, now):
        while self.under_way and self.under_way[0][0] <= now:
            os.write(self.target, self.under_way.popleft()[1])

    def due(self):
        return self.under_way[0][0] if self.under_way else None


def main():
    near_name, far_name, process = sys.argv[1:4]
    delay, rate, room = (int(number) for number in sys.argv[4:7])
    near, far = interface(near_name), interface(far_name)
    subprocess.run(["ip", "link", "set", far_name, "netns", process], check=True)
    ways = {near: Way(near, far, delay / 1000, rate, room), far: Way(far, near, delay / 1000, rate, room)}
    print("ready", flush=True)
    while True:
        dues = [way.due() for way in ways.values() if way.due() is not None]
        wait = max(0.0, min(dues) - time.monotonic()) if dues else None
        readable = select.select([near, far, sys.stdin], [], [], wait)[0]
        if sys.stdin in readable:
            return
        for source in readable:
            ways[source].take(time.monotonic())
        for way in ways.values():
            way.give(time.monotonic())


main()
