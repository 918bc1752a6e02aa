//! Merging fragments, and checking what Kconfig made of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use crate::{Error, fragments::Fragment};

/// An option that a fragment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The name, with `CONFIG_`.
    pub option: String,
    /// The value: `y`, `m`, a number, a quoted string; `n` for "is not set".
    pub value: String,
    /// `NN-name.config:LINE`.
    pub place: String,
    /// The comment above it.
    pub reason: String,
}

/// An option that Kconfig did not take over as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Fragment and line, `NN-name.config:LINE`.
    pub place: String,
    /// The option, with `CONFIG_`.
    pub option: String,
    /// The value that the fragment asks for.
    pub asked: String,
    /// The value in the resulting configuration.
    pub got: String,
    /// Whether the source has no such option at all, as another release of Linux may not.
    pub unknown: bool,
}

pub(crate) fn describe_lost(lost: &[Lost]) -> String {
    let line = |l: &Lost| {
        let why = if l.unknown { "this source has no such option" } else { "what it depends on is off" };
        format!("{}: {}={} was asked for, and Kconfig made it {} ({why})", l.place, l.option, l.asked, l.got)
    };
    lost.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What all fragments ask for together.
#[derive(Debug, Clone)]
pub struct Merged {
    asked: Vec<Asked>,
}

impl Merged {
    /// Reads fragments. No option may stand in two places.
    pub fn parse(fragments: &[Fragment]) -> Result<Self, Error> {
        let mut asked: Vec<Asked> = Vec::new();
        let mut places: BTreeMap<String, String> = BTreeMap::new();
        for fragment in fragments {
            let mut reason = String::new();
            let mut in_options = false;
            for (number, text) in (1..).zip(fragment.text.lines()) {
                let place = format!("{}:{number}", fragment.name);
                if let Some((option, value)) = option(text) {
                    if let Some(first) = places.insert(option.into(), place.clone()) {
                        return Err(Error::Twice { option: option.into(), first, second: place });
                    }
                    asked.push(Asked {
                        option: option.into(),
                        value: value.into(),
                        place,
                        reason: reason.clone(),
                    });
                    in_options = true;
                } else if let Some(comment) = text.strip_prefix('#') {
                    if std::mem::take(&mut in_options) {
                        reason.clear();
                    }
                    if !reason.is_empty() {
                        reason.push(' ');
                    }
                    reason.push_str(comment.trim());
                } else if text.trim().is_empty() {
                    reason.clear();
                    in_options = false;
                } else {
                    return Err(Error::Fragment {
                        fragment: fragment.name.into(),
                        line: number,
                        text: text.into(),
                    });
                }
            }
        }
        Ok(Self { asked })
    }

    /// Every option, in the fragments' order.
    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// One option, with or without `CONFIG_`.
    pub fn get(&self, option: &str) -> Option<&Asked> {
        let bare = option.strip_prefix("CONFIG_").unwrap_or(option);
        self.asked.iter().find(|a| a.option.strip_prefix("CONFIG_") == Some(bare))
    }

    /// As one configuration without comments: the same text for the same options, whatever is said about them.
    pub fn text(&self) -> String {
        self.asked.iter().fold(String::new(), |mut text, a| {
            let _ = match a.value.as_str() {
                "n" => writeln!(text, "# {} is not set", a.option),
                value => writeln!(text, "{}={value}", a.option),
            };
            text
        })
    }

    /// What did not survive in `config`; `known` are the options that the source has.
    pub fn lost(&self, config: &Config, known: &BTreeSet<String>) -> Vec<Lost> {
        let lost = self.asked.iter().filter(|a| config.value(&a.option) != a.value);
        lost.map(|a| Lost {
            place: a.place.clone(),
            option: a.option.clone(),
            asked: a.value.clone(),
            got: config.value(&a.option).into(),
            unknown: !known.contains(a.option.strip_prefix("CONFIG_").unwrap_or(&a.option)),
        })
        .collect()
    }
}

/// A kernel's `.config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    values: BTreeMap<String, String>,
}

impl Config {
    /// Reads a `.config`; lines that are no options are comments.
    pub fn parse(text: &str) -> Self {
        let values = text.lines().filter_map(option).map(|(o, v)| (o.to_owned(), v.to_owned())).collect();
        Self { values }
    }

    /// The value of an option with `CONFIG_`; `n` if it is off, hidden or unknown.
    pub fn value(&self, option: &str) -> &str {
        self.values.get(option).map_or("n", String::as_str)
    }
}

/// A line `CONFIG_NAME=value` or `# CONFIG_NAME is not set`.
fn option(line: &str) -> Option<(&str, &str)> {
    let (name, value) = match line.strip_prefix("# ") {
        Some(rest) => (rest.strip_suffix(" is not set")?, "n"),
        None => line.split_once('=')?,
    };
    let bare = name.strip_prefix("CONFIG_")?;
    let valid = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (valid && !value.is_empty()).then(|| (name, value.trim_end()))
}

/// The names (without `CONFIG_`) of all options that a source tree's Kconfig files define.
pub fn known_options(source: &Path) -> Result<BTreeSet<String>, Error> {
    let mut known = BTreeSet::new();
    collect(source, &mut known)?;
    Ok(known)
}

fn collect(directory: &Path, known: &mut BTreeSet<String>) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type().map_err(Error::io("look at", entry.path()))?;
        if kind.is_dir() {
            collect(&entry.path(), known)?;
        } else if kind.is_file() && name.starts_with("Kconfig") {
            let text = fs::read(entry.path()).map_err(Error::io("read", entry.path()))?;
            let text = String::from_utf8_lossy(&text);
            let defined = text.lines().filter_map(|line| {
                let line = line.trim_start();
                line.strip_prefix("config ").or_else(|| line.strip_prefix("menuconfig "))
            });
            known.extend(defined.map(|name| name.trim().to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragments;

    const ONE: Fragment = Fragment {
        name: "10-one.config",
        text: "# head\n\n# why\n# and more\nCONFIG_A=y\n# CONFIG_B is not set\n\n# number\nCONFIG_C=64\n",
    };

    #[test]
    fn options_carry_place_and_reason() {
        let merged = Merged::parse(&[ONE]).unwrap();
        let b = merged.get("B").unwrap();
        assert_eq!((b.value.as_str(), b.place.as_str()), ("n", "10-one.config:6"));
        assert_eq!(b.reason, "why and more");
        assert_eq!(merged.get("CONFIG_C").unwrap().reason, "number");
        assert_eq!(merged.text(), "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=64\n");
    }

    #[test]
    fn every_option_that_did_not_survive_is_named() {
        let merged = Merged::parse(&[ONE]).unwrap();
        let config = Config::parse("CONFIG_A=m\nCONFIG_D=y\n");
        let lost = merged.lost(&config, &BTreeSet::from(["A".to_owned()]));
        assert_eq!(
            describe_lost(&lost),
            "10-one.config:5: CONFIG_A=y was asked for, and Kconfig made it m (what it depends on is off)\n\
             10-one.config:9: CONFIG_C=64 was asked for, and Kconfig made it n (this source has no such option)"
        );
    }

    #[test]
    fn an_option_in_two_places_is_refused() {
        let two = Fragment { name: "20-two.config", text: "CONFIG_A=m\n" };
        let error = Merged::parse(&[ONE, two]).unwrap_err().to_string();
        assert!(error.contains("10-one.config:5") && error.contains("20-two.config:1"), "{error}");
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for text in ["CONFIG_A\n", "CONFIG_=y\n", "A=y\n", "CONFIG_A B=y\n", "CONFIG_A=\n"] {
            let wrong = Merged::parse(&[Fragment { name: "x", text }]);
            assert!(matches!(wrong, Err(Error::Fragment { line: 1, .. })), "{text}");
        }
    }

    #[test]
    fn our_fragments_are_well_formed_and_give_their_reasons() {
        let merged = Merged::parse(fragments::ALL).unwrap();
        for asked in merged.asked() {
            assert!(asked.reason.len() > 5, "{}: {} has no reason", asked.place, asked.option);
        }
        for fragment in fragments::ALL {
            assert!(fragment.text.starts_with("# "), "{}: no head that says what it is", fragment.name);
        }
    }
}
