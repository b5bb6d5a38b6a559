//! Which kinds of XDP a driver can do, asked of the generic netlink family `netdev` (since kernel 6.3).
//!
//! Two small exchanges with fixed attributes, so the messages are laid out by hand. It must only read.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// What the driver of an interface can do now: bits of `enum netdev_xdp_act` in linux/netdev.h. Drivers change them
/// with their settings, so this is the truth about the interface as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    const BASIC: u64 = 1;

    /// Whether a program can run in the driver and drop, pass and send packets back.
    pub const fn native(self) -> bool {
        self.0 & Self::BASIC != 0
    }

    /// Asks about an interface of the calling thread's network namespace; none where the kernel cannot tell.
    pub fn of(ifindex: u32) -> Option<Self> {
        ask(ifindex).ok().flatten().map(Self)
    }
}

// Numbers of linux/genetlink.h and linux/netdev.h.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;

fn ask(ifindex: u32) -> io::Result<Option<u64>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family =
        exchange(&socket, &request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0"))?;
    let Some(family) = attribute(&family, CTRL_ATTR_FAMILY_ID).and_then(|value| value.try_into().ok()) else {
        return Ok(None);
    };
    let family = u16::from_ne_bytes(family);
    let device = exchange(
        &socket,
        &request(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()),
    )?;
    let features = attribute(&device, NETDEV_A_DEV_XDP_FEATURES).and_then(|value| value.try_into().ok());
    Ok(features.map(u64::from_ne_bytes))
}

/// A request with one attribute.
fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let padded = value.len().next_multiple_of(4);
    let length = NLMSG_HEADER + GENL_HEADER + ATTRIBUTE_HEADER + padded;
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&(length as u32).to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(&((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(length, 0);
    message
}

/// Sends a request; the attributes of the answer. The kernel answers before `send` returns, so nothing blocks.
fn exchange(socket: &Socket, request: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if kind.is_none_or(|kind| kind == NLMSG_ERROR) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(answer.get(NLMSG_HEADER + GENL_HEADER..).unwrap_or_default().to_vec())
}

/// The value of an attribute in a row of them.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_nonsense_is_not() {
        let made = request(7, 1, 2, b"netdev\0");
        assert_eq!(made.len() % 4, 0);
        let attributes = &made[NLMSG_HEADER + GENL_HEADER..];
        assert_eq!(attribute(attributes, 2), Some(&b"netdev\0"[..]));
        assert_eq!(attribute(attributes, 3), None);
        for bad in [&[][..], &[0, 0, 2, 0], &[3, 0, 2, 0], &[200, 0, 2, 0, 1]] {
            assert_eq!(attribute(bad, 2), None, "{bad:?}");
        }
    }

    #[test]
    fn an_interface_that_does_not_exist_has_no_features() {
        assert_eq!(XdpFeatures::of(0x7fff_fffe), None);
    }
}
