//! Checks of addresses, prefixes and interface names.

use std::collections::HashSet;
use std::net::IpAddr;

use super::super::model::Node;
use super::{Findings, Locus};

/// Longest interface name Linux knows, in bytes.
const LONGEST_INTERFACE: usize = 15;

pub(super) fn check_node(node: &Node, findings: &mut Findings) {
    let mut seen = HashSet::new();
    for name in &node.interfaces {
        if !is_interface(name) {
            findings.add(
                Locus::Node("interfaces"),
                format!("node: {name:?} cannot be the name of an interface"),
                "list names as `ip link` shows them, at most 15 characters",
            );
        }
        if !seen.insert(name) {
            findings.add(
                Locus::Node("interfaces"),
                format!("node: interface {name:?} is listed twice"),
                "list each interface once",
            );
        }
    }
    if node.gue_port == 0 {
        findings.add(Locus::Node("gue_port"), "node: gue_port 0 is below 1", "choose 1 to 65535");
    }
    if let Some(prefix) = node.source_v4 {
        let exact = prefix.trunc();
        check_prefix(
            "source_v4",
            IpAddr::V4(prefix.addr()),
            prefix.prefix_len(),
            prefix != exact,
            &exact,
            findings,
        );
    }
    if let Some(prefix) = node.source_v6 {
        let exact = prefix.trunc();
        check_prefix(
            "source_v6",
            IpAddr::V6(prefix.addr()),
            prefix.prefix_len(),
            prefix != exact,
            &exact,
            findings,
        );
    }
}

fn check_prefix(
    field: &'static str,
    address: IpAddr,
    length: u8,
    host_bits: bool,
    exact: &dyn std::fmt::Display,
    findings: &mut Findings,
) {
    let locus = Locus::Node(field);
    if host_bits {
        findings.add(
            locus,
            format!("node: {field} {address}/{length} has bits set after its prefix"),
            format!("write \"{exact}\"; those bits carry flow entropy"),
        );
    } else if length == 0 {
        findings.add(
            locus,
            format!("node: {field} covers every address"),
            "choose a prefix that is routed to nobody else, such as 10.200.0.0/16",
        );
    } else if let Some(what) = unusable(address) {
        findings.add(
            locus,
            format!("node: {field} {address}/{length} is {what}"),
            "choose a prefix that is routed to nobody else, such as 10.200.0.0/16",
        );
    }
}

/// Checks an address that packets are sent to.
pub(super) fn check_address(address: IpAddr, locus: Locus, context: &str, findings: &mut Findings) {
    if let Some(what) = unusable(address) {
        let help = match address {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "write it as an IPv4 address",
            _ => "name the address that packets on the wire carry",
        };
        findings.add(locus, format!("{context}address {address} is {what}"), help);
    }
}

/// Why an address cannot be the source or the destination of forwarded packets.
fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("unspecified");
    }
    if address.is_loopback() {
        return Some("a loopback address, which never leaves a machine");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("of network 0.0.0.0/8, which cannot be sent to"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("a reserved address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("a link-local address, which no router forwards")
        }
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address written as IPv6"),
        _ => None,
    }
}

/// True for what Linux accepts as the name of an interface.
fn is_interface(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_INTERFACE
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}
