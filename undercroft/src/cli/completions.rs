//! Completions: what clap writes of the verbs and options, and for bash and fish the names of the distributions there are.

use std::io::{self, Write};

use clap_complete::{Shell, generate};

use super::ours;

/// Verbs whose first word names a distribution.
const OF_ONE: [&str; 14] = [
    "run",
    "exec",
    "terminate",
    "stop",
    "unregister",
    "remove",
    "set-default",
    "export",
    "clone",
    "rename",
    "move",
    "resize",
    "keep-alive",
    "set-default-user",
];

/// The names, a line each; they are letters, digits, `.`, `_` and `-`.
const NAMES: &str = "undercroft list --quiet 2>/dev/null";

/// Writes a shell's.
pub(super) fn write(shell: Shell, to: &mut dyn Write) -> io::Result<()> {
    let mut text = Vec::new();
    generate(shell, &mut ours::command(), "undercroft", &mut text);
    to.write_all(&text)?;
    to.write_all(names(shell).as_bytes())
}

fn names(shell: Shell) -> String {
    match shell {
        Shell::Bash => format!(
            r#"
_undercroft_with_names() {{
    _undercroft "$@"
    case "$COMP_CWORD ${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD]}}" in
        *' -'*) ;;
        {}) COMPREPLY=($(compgen -W "$({NAMES})" -- "${{COMP_WORDS[COMP_CWORD]}}")) ;;
    esac
}}
complete -F _undercroft_with_names -o bashdefault -o default undercroft
"#,
            OF_ONE.map(|verb| format!("'2 {verb} '*")).join("|")
        ),
        Shell::Fish => OF_ONE
            .map(|verb| {
                format!("complete -c undercroft -n '__fish_undercroft_using_subcommand {verb}' -f -a '({NAMES})'\n")
            })
            .concat(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn verbs_that_take_a_distribution_are_verbs() {
        for verb in OF_ONE {
            assert!(ours::command().find_subcommand(verb).is_some(), "{verb}");
        }
    }

    #[test]
    fn bash_completes_names() {
        let mut script = Vec::new();
        write(Shell::Bash, &mut script).unwrap();
        let mut script = String::from_utf8(script).unwrap();
        // The program itself would look at this user's distributions.
        script.push_str(
            "undercroft() { printf 'debian\\ndeb2\\nalpine\\n'; }
             try() {
                 COMP_WORDS=(undercroft \"$@\") COMP_CWORD=$#
                 _undercroft_with_names undercroft \"${@: -1}\" \"${@: -2:1}\"
                 echo \"$* → ${COMPREPLY[*]}\"
             }
             try terminate deb; try run ''; try ter; try run --us; try import deb
             ",
        );
        let Ok(output) = Command::new("bash").args(["--norc", "-c", &script]).output() else { return };
        let said = String::from_utf8_lossy(&output.stdout);
        insta::assert_snapshot!(said.trim_end(), @r"
        terminate deb → debian deb2
        run  → debian deb2 alpine
        ter → terminate
        run --us → --user
        import deb →
        ");
    }
}
