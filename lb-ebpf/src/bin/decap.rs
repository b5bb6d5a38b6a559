//! The backend's program: maps, and decapsulation over them.
#![no_std]
#![no_main]
// The attribute macros wrap what they decorate in undocumented public items.
#![allow(missing_docs, unreachable_pub)]
// As in lb-common: the verifier loses the packet's bounds at a call.
#![allow(clippy::inline_always)]
// The entry point's signature is the macro's.
#![allow(clippy::needless_pass_by_value)]

use aya_ebpf::{
    macros::{map, xdp},
    maps::{
        Array, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::XdpContext,
};
use lb_common::{
    abi,
    address::{AddressBytes, Family},
    decap::{self, DecapNode, DecapTables, Outcome},
    node::Node,
};
use lb_ebpf::packet::{XdpPacket, action};

#[map]
static DECAP_NODE: Array<DecapNode> = Array::with_max_entries(1, 0);
#[map]
static SOURCES_V4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(abi::DECAP_SOURCES, 0);
#[map]
static SOURCES_V6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(abi::DECAP_SOURCES, 0);
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::COUNT, 0);

/// The maps, for one packet.
struct KernelTables;

impl DecapTables for KernelTables {
    #[inline(always)]
    fn node(&self) -> Option<&DecapNode> {
        DECAP_NODE.get(0).filter(|node| node.ready == Node::READY)
    }

    #[inline(always)]
    fn allowed(&self, family: Family, source: &AddressBytes) -> bool {
        match family {
            Family::V4 => {
                SOURCES_V4.get(Key::new(32, [source[0], source[1], source[2], source[3]])).is_some()
            }
            Family::V6 => SOURCES_V6.get(Key::new(128, *source)).is_some(),
        }
    }

    #[inline(always)]
    fn count(&self, outcome: Outcome) {
        if let Some(entry) = OUTCOMES.get_ptr_mut(outcome as u32) {
            // SAFETY: per-CPU memory, and XDP does not preempt itself on one CPU.
            unsafe { *entry = (*entry).wrapping_add(1) };
        }
    }
}

/// Entry point.
#[xdp]
fn decap(ctx: XdpContext) -> u32 {
    action(decap::decapsulate(&mut XdpPacket(&ctx), &KernelTables))
}

// The verifier proves that nothing panics; the compiler wants a handler all the same.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
