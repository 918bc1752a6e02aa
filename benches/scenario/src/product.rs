//! Where the product is in the ruler's machine, and how it is configured there.

/// The product, laid out as `cargo xtask dist` does.
pub const UNDERCROFT: &str = "/bin/undercroft";
/// The folder of its parts.
pub const PARTS: &str = "/lib/undercroft";
/// The person's home.
pub const HOME: &str = "/home/measured";
/// The distribution, as a tar; it holds [`PROGRAM`](crate::PROGRAM).
pub const ARCHIVE: &str = "/busybox.tar";
/// Nothing stops by itself, and there is no world to reach.
pub const CONFIGURATION: &str = "[wsl2]\nmemory=512MB\nprocessors=1\nswap=0\nnetworkingMode=none\nvmIdleTimeout=-1\n\
    [general]\ninstanceIdleTimeout=-1\n";
