//! Writing what an archive says.
