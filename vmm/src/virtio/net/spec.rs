//! The numbers of virtio-net (virtio 1.2, section 5.1), and of the frames on the host's side. No behaviour.

use virtio_bindings::virtio_net;

/// Device type.
pub(super) const ID: u32 = 1;

/// Bytes of the configuration as far as any offered feature gives it a meaning (section 5.1.4): the MAC address, the
/// status, the number of queue pairs and the MTU.
pub(super) const CONFIG_LENGTH: usize = 12;
/// Where the configuration says whether the link is up.
pub(super) const CONFIG_STATUS: usize = 6;
/// Where the configuration says how many pairs of queues there are.
pub(super) const CONFIG_PAIRS: usize = 8;
/// Where the configuration says how long a packet may be at most.
pub(super) const CONFIG_MTU: usize = 10;
/// VIRTIO_NET_S_LINK_UP.
pub(super) const STATUS_LINK_UP: u16 = 1;

/// Bytes of the header before each packet (section 5.1.6). With VIRTIO_F_VERSION_1 it has `num_buffers` always.
pub(super) const HEADER_LENGTH: usize = 12;
/// Where the header has `num_buffers`.
pub(super) const HEADER_BUFFERS: usize = 10;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
pub(super) const FLAG_NEEDS_CHECKSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID.
pub(super) const FLAG_DATA_VALID: u8 = 2;
/// VIRTIO_NET_HDR_GSO_NONE.
pub(super) const GSO_NONE: u8 = 0;

/// VIRTIO_NET_F_CSUM: the device completes checksums.
pub(super) const F_CHECKSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_CSUM;
/// VIRTIO_NET_F_GUEST_CSUM: the driver takes packets whose checksum is not complete, or is known to be right.
pub(super) const F_GUEST_CHECKSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
/// VIRTIO_NET_F_MTU.
pub(super) const F_MTU: u64 = 1 << virtio_net::VIRTIO_NET_F_MTU;
/// VIRTIO_NET_F_MAC.
pub(super) const F_MAC: u64 = 1 << virtio_net::VIRTIO_NET_F_MAC;
/// VIRTIO_NET_F_MRG_RXBUF: a packet may lie in several receive buffers.
pub(super) const F_MERGEABLE: u64 = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
/// VIRTIO_NET_F_STATUS: the configuration says whether the link is up.
pub(super) const F_STATUS: u64 = 1 << virtio_net::VIRTIO_NET_F_STATUS;
/// VIRTIO_NET_F_GUEST_TSO4, by which the driver takes segments that are larger than packets.
pub(super) const F_GUEST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;
/// VIRTIO_NET_F_GUEST_TSO6, the same for IPv6.
pub(super) const F_GUEST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6;
/// VIRTIO_NET_F_GUEST_ECN, the same for segments with ECN.
pub(super) const F_GUEST_ECN: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_ECN;
/// VIRTIO_NET_F_HOST_TSO4, HOST_TSO6, HOST_ECN: the device takes segments that are larger than packets.
pub(super) const F_HOST_SEGMENTATION: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4
    | 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6
    | 1 << virtio_net::VIRTIO_NET_F_HOST_ECN;

/// Bytes of an Ethernet header (IEEE 802.3): two addresses and a type.
pub(super) const ETHERNET_LENGTH: usize = 14;
/// The longest frame: an IP packet's greatest length, an Ethernet header, a VLAN tag.
pub(super) const FRAME_MAX: usize = 0xffff + ETHERNET_LENGTH + 4;
/// Bytes before each frame on a stream socket: the frame's length, big endian. QEMU's `-netdev stream` (net/stream.c) and
/// passt speak so.
pub(super) const PREFIX_LENGTH: usize = 4;
