//! Reading tar archives.
