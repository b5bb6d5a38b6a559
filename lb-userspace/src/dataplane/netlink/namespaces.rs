//! Links whose other half is in another network namespace, and which namespace that is.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::packet_core::NLM_F_REQUEST;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};

use super::{Netlink, NetlinkError, wire};

/// What a link belongs to, beyond what the packet path needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placement {
    /// The namespace of its other half, as numbered in this one; none where it is this one.
    pub namespace: Option<i32>,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
}

impl Netlink {
    /// Where a link belongs.
    pub async fn placement(&self, ifindex: u32) -> Result<Placement, NetlinkError> {
        let query = wire::link_query(Some(ifindex), None);
        let replies = self.request("a link", query, NLM_F_REQUEST).await?;
        let mut placement = Placement::default();
        for reply in &replies {
            let RouteNetlinkMessage::NewLink(message) = reply else { continue };
            for attribute in &message.attributes {
                match attribute {
                    LinkAttribute::LinkNetNsId(id) => placement.namespace = Some(*id),
                    LinkAttribute::Controller(index) => {
                        placement.controller = Some(*index).filter(|index| *index != 0);
                    }
                    _ => {}
                }
            }
        }
        Ok(placement)
    }

    /// The number that another network namespace has in this one; none where it has none.
    pub async fn namespace_id(&self, namespace: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
        let replies = self
            .request("a namespace's number", RouteNetlinkMessage::GetNsId(message), NLM_F_REQUEST)
            .await?;
        Ok(replies.iter().find_map(|reply| match reply {
            RouteNetlinkMessage::NewNsId(message) => {
                message.attributes.iter().find_map(|attribute| match attribute {
                    // -1: it has no number.
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                })
            }
            _ => None,
        }))
    }
}
