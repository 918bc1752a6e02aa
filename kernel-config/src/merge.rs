//! Merging fragments and checking what became of them.

/// An option that Kconfig did not take over as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Fragment and line, `NN-name.config:LINE`.
    pub place: String,
    /// The option, with `CONFIG_`.
    pub option: String,
    /// The value that the fragment asks for; `n` for "is not set".
    pub asked: String,
    /// The value in the resulting configuration.
    pub got: String,
}

pub(crate) fn describe_lost(lost: &[Lost]) -> String {
    let lines: Vec<_> = lost
        .iter()
        .map(|l| {
            format!("{}: {}={} was asked for, and Kconfig made it {}", l.place, l.option, l.asked, l.got)
        })
        .collect();
    lines.join("\n")
}
