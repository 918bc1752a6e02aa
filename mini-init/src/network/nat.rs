//! Translation of addresses: what comes by the wire of a distribution and goes on into the world does so with the VM's own
//! address (nf_tables, linux/netfilter/nf_tables.h).

use nix::errno::Errno;

use super::netlink::{Attributes, Netlink, Request, text};

/// Names of the wires' ends in the VM begin so; the distribution's number follows.
pub(super) const PREFIX: &str = "dist";
/// Table and chain.
const NAME: &str = "undercroft";

/// Types of messages (enum nf_tables_msg_types of the subsystem NFNL_SUBSYS_NFTABLES), and what a batch is between.
const fn message(kind: u16) -> u16 {
    10 << 8 | kind
}
const NEW_TABLE: u16 = message(0);
const NEW_CHAIN: u16 = message(3);
const NEW_RULE: u16 = message(6);
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// struct nfgenmsg: family, version, resource. NFPROTO_INET is IPv4 and IPv6; a batch names the subsystem.
const FAMILY: [u8; 4] = [1, 0, 0, 0];
const SUBSYSTEM: [u8; 4] = [0, 0, 0, 10];

/// The first register of 128 bits.
const REGISTER: [u8; 4] = 1_u32.to_be_bytes();
/// NFT_META_IIFNAME and OIFNAME.
const COMES_BY: u32 = 6;
const GOES_BY: u32 = 7;
/// NFT_CMP_EQ and NEQ.
const IS: u32 = 0;
const IS_NOT: u32 = 1;
/// The hook behind routing (NF_INET_POST_ROUTING), and what sources are translated at (NF_IP_PRI_NAT_SRC).
const POST_ROUTING: u32 = 4;
const PRIORITY: u32 = 100;

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default().with(1, &text(name)).holding(2, data)
}

/// The rule's condition that the link that a packet comes or goes by is, or is not, one of the wires.
fn wire(which: u32, comparison: u32) -> [Attributes; 2] {
    let load = Attributes::default().with(1, &REGISTER).with(2, &which.to_be_bytes());
    let value = Attributes::default().with(1, PREFIX.as_bytes());
    let compare =
        Attributes::default().with(1, &REGISTER).with(2, &comparison.to_be_bytes()).holding(3, &value);
    [expression("meta", &load), expression("cmp", &compare)]
}

/// Sees to it that it happens.
pub(super) fn masquerade() -> Result<(), Errno> {
    let hook = Attributes::default().with(1, &POST_ROUTING.to_be_bytes()).with(2, &PRIORITY.to_be_bytes());
    let rule = wire(COMES_BY, IS)
        .into_iter()
        .chain(wire(GOES_BY, IS_NOT))
        .chain([expression("masq", &Attributes::default())])
        .fold(Attributes::default(), |all, one| all.holding(1, &one));
    let name = text(NAME);
    let outcome = Netlink::open_filter()?.ask_for_all(vec![
        Request::unanswered(BATCH_BEGIN, &SUBSYSTEM),
        Request::new(NEW_TABLE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &FAMILY).with(1, &name),
        Request::new(NEW_CHAIN, libc::NLM_F_CREATE, &FAMILY)
            .with(1, &name)
            .with(3, &name)
            .holding(4, &hook)
            .with(7, &text("nat")),
        Request::new(NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, &FAMILY)
            .with(1, &name)
            .with(2, &name)
            .holding(4, &rule),
        Request::unanswered(BATCH_END, &SUBSYSTEM),
    ]);
    // Another distribution came first.
    if outcome == Err(Errno::EEXIST) { Ok(()) } else { outcome }
}
