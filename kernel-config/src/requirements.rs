//! What Docker, Podman and systemd ask of a kernel, held against a configuration.
//!
//! The lists are in `requirements/*.txt`; their format is explained in `docker.txt`.

use crate::{Error, merge::Config};

/// One list: whose it is, and its text.
#[derive(Debug, Clone, Copy)]
pub struct List {
    /// Who asks.
    pub who: &'static str,
    /// The lines.
    pub text: &'static str,
}

/// All of them.
pub const ALL: &[List] = &[
    List { who: "docker", text: include_str!("../requirements/docker.txt") },
    List { who: "podman", text: include_str!("../requirements/podman.txt") },
    List { who: "systemd", text: include_str!("../requirements/systemd.txt") },
];

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Whose list it is on.
    pub who: &'static str,
    /// The option, with `CONFIG_`.
    pub option: String,
    /// Whether it must be off, where others must be on.
    pub off: bool,
    /// Whether they call it necessary.
    pub necessary: bool,
    /// Why it is left out, if it is optional and left out.
    pub reason: Option<String>,
}

/// A list's requirements.
pub fn parse(list: &List) -> Result<Vec<Requirement>, Error> {
    let mut requirements = Vec::new();
    for (line, text) in (1..).zip(list.text.lines()) {
        let wrong = |problem: &str| Error::Requirement {
            file: format!("requirements/{}.txt", list.who),
            line,
            problem: format!("{problem}: {text:?}"),
        };
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let (head, reason) = match text.split_once(':') {
            Some((head, reason)) => (head, Some(reason.trim().to_owned())),
            None => (text, None),
        };
        let (kind, name) =
            head.split_once(' ').ok_or_else(|| wrong("expected `necessary NAME` or `optional NAME`"))?;
        let necessary = match kind {
            "necessary" => true,
            "optional" => false,
            _ => return Err(wrong("expected `necessary NAME` or `optional NAME`")),
        };
        if necessary && reason.is_some() {
            return Err(wrong("there is no reason to leave out what is necessary"));
        }
        let (name, off) = name.strip_suffix("=n").map_or((name, false), |name| (name, true));
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(wrong("expected an option's name"));
        }
        requirements.push(Requirement {
            who: list.who,
            option: format!("CONFIG_{name}"),
            off,
            necessary,
            reason,
        });
    }
    Ok(requirements)
}

/// What a configuration makes of the lists.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How many requirements are met.
    pub met: usize,
    /// Necessary, and not met.
    pub missing: Vec<Requirement>,
    /// Optional, not met, and nobody said why.
    pub unexplained: Vec<Requirement>,
    /// Optional, left out, with a reason.
    pub left_out: Vec<Requirement>,
    /// Optional and there, though a reason says why it is left out.
    pub outdated: Vec<Requirement>,
}

impl Verdict {
    /// Whether nothing necessary is missing and everything that is left out has its reason.
    pub fn good(&self) -> bool {
        self.missing.is_empty() && self.unexplained.is_empty() && self.outdated.is_empty()
    }
}

/// Holds a configuration against requirements.
pub fn judge(config: &Config, requirements: impl IntoIterator<Item = Requirement>) -> Verdict {
    let mut verdict = Verdict::default();
    for requirement in requirements {
        let on = config.value(&requirement.option) != "n";
        let list = match (on != requirement.off, requirement.necessary, &requirement.reason) {
            (true, _, None) => {
                verdict.met += 1;
                continue;
            }
            (true, _, Some(_)) => &mut verdict.outdated,
            (false, true, _) => &mut verdict.missing,
            (false, false, None) => &mut verdict.unexplained,
            (false, false, Some(_)) => &mut verdict.left_out,
        };
        list.push(requirement);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fragments, merge::Merged};

    fn list(text: &'static str) -> List {
        List { who: "test", text }
    }

    #[test]
    fn each_kind_of_answer() {
        let text = "# head\n\nnecessary A\nnecessary B=n\nnecessary C\noptional D\noptional E: why\noptional F: why\n";
        let verdict = judge(&Config::parse("CONFIG_A=m\nCONFIG_F=y\n"), parse(&list(text)).unwrap());
        let names = |list: &[Requirement]| list.iter().map(|r| r.option.clone()).collect::<Vec<_>>();
        assert_eq!(verdict.met, 2);
        assert_eq!(names(&verdict.missing), ["CONFIG_C"]);
        assert_eq!(names(&verdict.unexplained), ["CONFIG_D"]);
        assert_eq!(names(&verdict.left_out), ["CONFIG_E"]);
        assert_eq!(names(&verdict.outdated), ["CONFIG_F"]);
        assert!(!verdict.good());
    }

    #[test]
    fn lines_that_mean_nothing_are_refused() {
        for text in ["A\n", "wanted A\n", "necessary A: but\n", "optional A B\n"] {
            assert!(matches!(parse(&list(text)), Err(Error::Requirement { line: 1, .. })), "{text}");
        }
    }

    #[test]
    fn our_lists_are_well_formed() {
        for list in ALL {
            assert!(parse(list).unwrap().len() > 20, "{}", list.who);
        }
    }

    /// Kconfig has the last word (`cargo xtask kernel --check`); this catches the plain mistakes without it.
    #[test]
    fn no_fragment_turns_off_what_somebody_needs() {
        let merged = Merged::parse(fragments::ALL).unwrap();
        for requirement in ALL.iter().flat_map(|list| parse(list).unwrap()).filter(|r| r.necessary) {
            let asked = merged.get(&requirement.option).map(|a| a.value.as_str());
            let wrong = if requirement.off { matches!(asked, Some("y" | "m")) } else { asked == Some("n") };
            assert!(!wrong, "{requirement:?}: {asked:?}");
        }
    }
}
