//! The balancer: maps, and the packet path over them.
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
    maps::{Array, DevMapHash, HashMap, PerCpuArray},
    programs::XdpContext,
};
use lb_common::{
    abi,
    backend::Backend,
    counter::Counter,
    datapath::{
        self,
        tables::{Egress, Tables},
    },
    node::Node,
    reason::Reason,
    ring::Slot,
    service::{Service, ServiceKey},
};
use lb_ebpf::packet::{XdpPacket, action};

/// The array may be mapped into user space (`include/uapi/linux/bpf.h`).
const BPF_F_MMAPABLE: u32 = 1 << 10;

// Sizes of 1 are placeholders: the agent sets them from its configuration before it loads.
#[map]
static NODE: Array<Node> = Array::with_max_entries(1, 0);
#[map]
static SERVICES: HashMap<ServiceKey, Service> = HashMap::with_max_entries(1, 0);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static RINGS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(1, 0);
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);
#[map]
static DEVICES: DevMapHash = DevMapHash::with_max_entries(abi::DEVICES, 0);

/// The maps, for one packet.
struct KernelTables<'c> {
    ctx: &'c XdpContext,
}

impl Tables for KernelTables<'_> {
    #[inline(always)]
    fn node(&self) -> Option<&Node> {
        NODE.get(0).filter(|node| node.ready == Node::READY)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: the value is plain data, copied at once. The kernel may use a replaced element for another update while
        // we copy: see the limit that ARCHITECTURE.md names under its first invariant.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        RINGS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<&Backend> {
        BACKENDS.get(index)
    }

    #[inline(always)]
    fn egress(&self, ifindex: u32) -> Option<Egress> {
        if ifindex as usize == self.ctx.ingress_ifindex() {
            return Some(Egress::Transmit);
        }
        DEVICES.redirect(ifindex, 0).ok().map(|_| Egress::Redirect)
    }

    #[inline(always)]
    fn count(&self, counter: u32, bytes: usize) {
        if let Some(entry) = COUNTERS.get_ptr_mut(counter) {
            // SAFETY: per-CPU memory, and XDP does not preempt itself on one CPU.
            unsafe {
                (*entry).packets = (*entry).packets.wrapping_add(1);
                (*entry).bytes = (*entry).bytes.wrapping_add(bytes as u64);
            }
        }
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason) {
        if let Some(entry) = REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: as in `count`.
            unsafe { *entry = (*entry).wrapping_add(1) };
        }
    }

    #[inline(always)]
    fn report_bad_state(&self, key: &ServiceKey, service: &Service) {
        report(self.ctx, key, service);
    }
}

/// Out of line: this happens when somebody wrote nonsense into the maps, and must cost the path nothing otherwise.
#[inline(never)]
fn report(ctx: &XdpContext, key: &ServiceKey, service: &Service) {
    aya_log_ebpf::error!(
        ctx,
        "maps contradict each other: service on port {} protocol {}, ring {}+{}, backends {}+{}",
        key.port,
        key.protocol,
        service.ring_offset,
        service.ring_slots,
        service.backend_base,
        service.backend_count
    );
}

/// Entry point.
#[xdp]
fn forward(ctx: XdpContext) -> u32 {
    let tables = KernelTables { ctx: &ctx };
    action(datapath::forward(&mut XdpPacket(&ctx), &tables))
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
