//! A frame in the driver's buffer, between the two pointers that the verifier watches.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::datapath::packet::{Header, Packet};

/// The frame that a program was called for.
pub struct XdpPacket<'c>(pub &'c XdpContext);

impl XdpPacket<'_> {
    /// Where a header of type `H` at `offset` would be, if it is inside the frame.
    #[inline(always)]
    fn at<H>(&self, offset: usize) -> Option<*mut H> {
        let start = self.0.data() + offset;
        if start + size_of::<H>() > self.0.data_end() {
            return None;
        }
        Some(start as *mut H)
    }

    /// Moves the head by `delta` bytes; negative is outwards.
    #[inline(always)]
    fn adjust(&mut self, delta: i32) -> Option<()> {
        // SAFETY: the context is the one this program was called with; the kernel checks the bounds, and every later
        // access reads the pointers anew.
        let result = unsafe { bpf_xdp_adjust_head(self.0.as_ptr().cast(), delta) };
        (result == 0).then_some(())
    }
}

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    #[inline(always)]
    fn load<H: Header>(&self, offset: usize) -> Option<H> {
        // SAFETY: `at` compared the end of the header with the end of the frame, and any bytes are a valid `H`.
        self.at(offset).map(|header| unsafe { core::ptr::read_unaligned(header) })
    }

    #[inline(always)]
    fn store<H: Header>(&mut self, offset: usize, header: H) -> Option<()> {
        // SAFETY: `at` compared the end of the header with the end of the frame, and `H` has no padding.
        self.at(offset).map(|place| unsafe { core::ptr::write_unaligned(place, header) })
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_wrap, reason = "headers are tens of bytes")]
    fn grow(&mut self, bytes: usize) -> Option<()> {
        self.adjust(-(bytes as i32))
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_wrap, reason = "headers are tens of bytes")]
    fn shrink(&mut self, bytes: usize) -> Option<()> {
        self.adjust(bytes as i32)
    }
}

/// The action code of a verdict. A redirect's target was prepared when the verdict was reached.
#[inline(always)]
pub fn action(verdict: lb_common::datapath::Verdict) -> u32 {
    use aya_ebpf::bindings::xdp_action;
    use lb_common::datapath::Verdict;
    match verdict {
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect => xdp_action::XDP_REDIRECT,
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}
