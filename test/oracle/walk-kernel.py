"""Walks the kernel of a vmcore with drgn: walk-kernel.py VMCORE VMLINUX.

Each part begins with a line "# NAME"; what drgn cannot do is a line "! ERROR".
"""

import sys
from collections import Counter
from itertools import takewhile

import drgn
from drgn.helpers.linux import (
    PageLRU,
    PageReserved,
    PageSlab,
    for_each_mount,
    for_each_page,
    for_each_slab_cache,
    for_each_task,
    get_dmesg,
    list_for_each_entry,
    slab_cache_for_each_allocated_object,
)

KERNEL_HALF = 1 << 63
# For each of them drgn goes through the struct pages of all memory.
COUNTED_CACHES = {"task_struct", "mm_struct", "filp", "dentry", "inode_cache", "kmalloc-64", "kmalloc-1k"}

program = drgn.Program()
program.set_core_dump(sys.argv[1])
program.load_debug_info([sys.argv[2]])


def text(string):
    return string.string_().decode(errors="replace")


def tasks():
    for task in for_each_task(program):
        yield f"{task.pid.value_()} {task.value_():x} {text(task.comm)}"


def stacks():
    """Kernel functions alone: user frames are a guess where user memory is left out."""
    for task in for_each_task(program):
        frames = takewhile(lambda frame: frame.pc >= KERNEL_HALF, program.stack_trace(task))
        yield f"{task.pid.value_()} " + " < ".join(frame.name or hex(frame.pc) for frame in frames)


def slabs():
    for cache in for_each_slab_cache(program):
        name = text(cache.name)
        yield f"{name} {cache.object_size.value_()}"
        if name in COUNTED_CACHES:
            objects = slab_cache_for_each_allocated_object(cache, "void")
            yield f"{name} has {sum(1 for _ in objects)}"


def mounts():
    for mount in for_each_mount(program["init_task"].nsproxy.mnt_ns):
        yield f"{mount.value_():x} {text(mount.mnt_devname)}"


def modules():
    for module in list_for_each_entry("struct module", program["modules"].address_of_(), "list"):
        yield f"{module.value_():x} {text(module.name)}"


def log():
    yield from get_dmesg(program).decode(errors="replace").splitlines()


def pages():
    kinds = {"LRU": PageLRU, "reserved": PageReserved, "slab": PageSlab}
    counts = Counter()
    for page in for_each_page(program):
        counts["all"] += 1
        try:
            counts.update([name for name, is_kind in kinds.items() if is_kind(page)])
        except drgn.FaultError:
            # Holes between blocks of RAM have none.
            counts["without a struct page"] += 1
    yield from (f"{name} {count}" for name, count in sorted(counts.items()))


for part in [tasks, stacks, slabs, mounts, modules, log, pages]:
    print("#", part.__name__)
    try:
        for line in part():
            print(line)
    except Exception as error:
        print(f"! {type(error).__name__}: {error}")
