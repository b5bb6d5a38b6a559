//! Why a packet was not forwarded: the one list behind counters, labels and documentation.

/// What happens to a packet that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes up to the kernel, byte for byte as it came.
    Pass,
    /// It ends here.
    Drop,
}

impl Fate {
    /// `pass` or `drop`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

/// Makes an enum of outcomes: number (ABI: index of its counter), name, fate and explanation, each said once.
macro_rules! outcomes {
    ($(#[$meta:meta])* $enum:ident { $($variant:ident = $number:literal, $name:literal, $fate:ident, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $enum {
            $(#[doc = $text] $variant = $number,)*
        }

        impl $enum {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// How many there are: the size of the counter map.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The short name: its key in JSON and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn fate(self) -> $crate::reason::Fate {
                match self { $(Self::$variant => $crate::reason::Fate::$fate,)* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}
pub(crate) use outcomes;

outcomes! {
    /// Why a packet was not forwarded. Numbers are ABI: append, never renumber.
    Reason {
        NotConfigured = 0, "not_configured", Pass, "The agent has not filled the maps yet.";
        NotIp = 1, "not_ip", Pass, "Neither IPv4 nor IPv6: ARP, LLDP and the like.";
        Vlan = 2, "vlan", Pass, "A VLAN tag, which is not handled yet.";
        Fragment = 3, "fragment", Pass, "A fragment of an IP packet, which is not handled yet.";
        Ipv4Options = 4, "ipv4_options", Pass, "IPv4 options, which are not handled yet.";
        ExtensionHeader = 5, "extension_header", Pass, "An IPv6 extension header, which is not handled yet.";
        Icmp = 6, "icmp", Pass, "ICMP or ICMPv6: echo, errors, neighbour discovery; left to the kernel.";
        OtherProtocol = 7, "other_protocol", Pass, "A transport protocol other than TCP and UDP.";
        NotAService = 8, "not_a_service", Pass, "Addressed to no service.";
        ShortFrame = 9, "short_frame", Drop, "Shorter than an Ethernet header.";
        TruncatedIp = 10, "truncated_ip", Drop, "The IP header runs past the end of the frame.";
        BadIpHeader = 11, "bad_ip_header", Drop, "The IP header contradicts itself: wrong version or header length.";
        BadLength = 12, "bad_length", Drop, "The IP length does not fit the frame or the header.";
        TruncatedTransport = 13, "truncated_transport", Drop, "The TCP or UDP header runs past the end of the packet.";
        NoBackend = 14, "no_backend", Drop, "No backend of the service may take packets.";
        NoNextHop = 15, "no_next_hop", Drop, "The way to the backend is not known: no route, or its neighbour does not answer.";
        TooBig = 16, "too_big", Drop, "With its encapsulation the packet exceeds the MTU towards the backend.";
        NoHeadroom = 17, "no_headroom", Drop, "The driver left no room in front of the frame for the encapsulation.";
        NoDevice = 18, "no_device", Drop, "The interface towards the backend is not in the device map.";
        BadState = 19, "bad_state", Drop, "The maps contradict each other; the agent has a defect or somebody else wrote to them.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            let same = Reason::ALL.iter().filter(|other| other.name() == reason.name()).count();
            assert_eq!(same, 1, "{} is used twice", reason.name());
        }
    }
}
