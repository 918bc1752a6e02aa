//! `docs/configuration.md`, written from the tables.

use std::fmt::Write;

use crate::{
    key::{Fate, Key, Table},
    keys::{DISTRIBUTION, HOST, PACKAGE},
};

const HEAD: &str = "\
# Configuration

Three files, in WSL's own grammar and with WSL's own keys, so that what you have goes on working. This page is written from
the table of keys that the programs use (`config/src/keys/`); `undercroft config` shows each key, its value on your machine
and where that comes from.

## The grammar

It is git's:

```ini
# A comment, to the end of the line.
[wsl2]
memory = 8GB
kernelCommandLine = \"quiet sysctl.vm.swappiness=10\"   # quotes keep spaces and # signs
swapFile = /var/tmp/\\
swap.raw

[distribution \"Debian\"]
keepAlive = true
```

- Sections and keys are found in any case. A distribution's name stands in quotes behind its section's.
- In a value, `\\\\`, `\\\"`, `\\n`, `\\t` and `\\b` are escapes, and a backslash at a line's end goes on in the next one.
- Numbers are decimal, hexadecimal (`0x…`) or octal (`0…`); `KB`, `MB`, `GB` and `TB` are powers of 1024; `true` and `1`,
  `false` and `0` are the same.
- UTF-8, with or without a byte-order mark, and UTF-16 are read.
- Nothing in a file keeps anything from starting. What is unknown, given twice, of no meaning here or no value for its key is
  passed over, and named in a warning with its file and line.
";

/// The page.
pub fn document() -> String {
    let mut page = HEAD.to_owned();
    for table in [&HOST, &DISTRIBUTION, &PACKAGE] {
        // A string can be written to.
        let _ = file(&mut page, table);
    }
    page
}

fn file(page: &mut String, table: &Table) -> std::fmt::Result {
    let about = wrap(table.about, "");
    write!(page, "\n## `{}`\n\n{about}\n", table.file)?;
    let mut section = "";
    for key in table.keys {
        if key.section != section {
            section = key.section;
            write!(page, "\n### `{}`\n", key.heading(None))?;
        }
        self::key(page, key)?;
    }
    Ok(())
}

fn key(page: &mut String, key: &Key) -> std::fmt::Result {
    let text = format!("{} {}", key.what, key.more);
    write!(page, "\n#### `{}`\n\n{}\n\n- Value: {}\n", key.name, wrap(text.trim(), ""), key.kind.name())?;
    match key.fate {
        Fate::Honoured => {
            writeln!(page, "- Default: {}", key.default.describe())?;
            writeln!(page, "- A change acts {}.", key.acts.name())
        }
        Fate::NoMeaning(reason) => writeln!(page, "{}", wrap(&format!("- Not used here: {reason}."), "  ")),
    }
}

/// Breaks a text into lines of the width of the other pages.
fn wrap(text: &str, indent: &str) -> String {
    const WIDTH: usize = 120;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { continue };
        if line.trim().is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("{indent}{word}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        let text = "word ".repeat(60);
        let lines: Vec<String> = wrap(&text, "  ").lines().map(str::to_owned).collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= 120), "{lines:?}");
        assert!(lines[1].starts_with("  word"));
    }
}
