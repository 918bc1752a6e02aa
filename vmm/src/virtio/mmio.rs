//! The numbers of virtio over MMIO: virtio 1.2, sections 2.1 and 4.2.2. No behaviour.

/// How many bytes of address space a device's registers take, its configuration space with them.
pub const REGION_SIZE: u64 = 0x1000;

/// MagicValue: "virt", little endian.
pub const MAGIC: u32 = 0x7472_6976;
/// Version: the one that is not legacy.
pub const VERSION: u32 = 2;
/// VendorID: "ucft", little endian.
pub const VENDOR: u32 = 0x7466_6375;

/// R: [`MAGIC`].
pub const MAGIC_VALUE: u64 = 0x000;
/// R: [`VERSION`].
pub const DEVICE_VERSION: u64 = 0x004;
/// R: the device's type; 0 for a placeholder.
pub const DEVICE_ID: u64 = 0x008;
/// R: [`VENDOR`].
pub const VENDOR_ID: u64 = 0x00c;
/// R: 32 of the features offered.
pub const DEVICE_FEATURES: u64 = 0x010;
/// W: which 32 of them.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// W: 32 of the features accepted.
pub const DRIVER_FEATURES: u64 = 0x020;
/// W: which 32 of them.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// W: which queue the registers below are about.
pub const QUEUE_SEL: u64 = 0x030;
/// R: the longest that the queue may be; 0 if there is none.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// W: how long it is to be.
pub const QUEUE_NUM: u64 = 0x038;
/// RW: whether the queue may be used.
pub const QUEUE_READY: u64 = 0x044;
/// W: there are new buffers in the queue of this index.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// R: which interrupts are pending.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// W: which of them were dealt with.
pub const INTERRUPT_ACK: u64 = 0x064;
/// RW: the device's status; writing 0 resets it.
pub const STATUS: u64 = 0x070;
/// W: where the queue's descriptor table is, low half.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// W: its high half.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// W: where the queue's available ring ("driver area") is, low half.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// W: its high half.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// W: where the queue's used ring ("device area") is, low half.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// W: its high half.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// R: length of the shared memory region selected, low half; all ones if there is none.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// R: base of the shared memory region selected, high half.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// R: changes whenever the configuration space does.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// RW: the configuration space begins here.
pub const CONFIG: u64 = 0x100;

/// InterruptStatus: a buffer was used.
pub const INTERRUPT_USED_BUFFER: u32 = 1 << 0;
/// InterruptStatus: the configuration space changed.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 1 << 1;

/// Status: the guest has noticed the device.
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// Status: the guest knows how to drive it.
pub const STATUS_DRIVER: u32 = 2;
/// Status: the driver is ready.
pub const STATUS_DRIVER_OK: u32 = 4;
/// Status: the driver has said which features it takes.
pub const STATUS_FEATURES_OK: u32 = 8;
/// Status: the device can go on only after a reset.
pub const STATUS_NEEDS_RESET: u32 = 0x40;
/// Status: the guest has given up on the device.
pub const STATUS_FAILED: u32 = 0x80;
