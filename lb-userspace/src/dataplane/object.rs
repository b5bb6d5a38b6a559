//! The eBPF objects, as committed under `lb-userspace/bpf` and made by `cargo xtask ebpf`.

/// The balancer.
pub static FORWARD: &[u8] = aya::include_bytes_aligned!("../../bpf/forward.o");
/// The backend's decapsulation.
pub static DECAP: &[u8] = aya::include_bytes_aligned!("../../bpf/decap.o");
