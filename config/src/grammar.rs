//! The grammar, without any knowledge of keys.
//!
//! It is git's (git-config(1), "Syntax"), as the reference system reads it: `[section]` and `[section "subsection"]`,
//! `key = value`, `#` comments (and lines that start with `;`), double quotes, the escapes `\\ \" \n \t \b`, and a backslash
//! at a line's end to go on in the next one. What cannot be read is a [`Problem`] with its line, and does no harm to the rest.

use std::{fmt::Write, iter::Peekable, str::Chars};

/// The most problems that are told of one file: a file of another kind has one in each line.
const MOST_PROBLEMS: usize = 50;
/// The most characters of a file that a problem repeats.
const EXCERPT: usize = 60;

/// What a file says, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// Its `key = value` lines.
    pub entries: Vec<Entry>,
    /// What could not be read.
    pub problems: Vec<Problem>,
}

/// One `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The section's name, as written.
    pub section: String,
    /// The name in quotes behind it.
    pub subsection: Option<String>,
    /// The key, as written.
    pub key: String,
    /// The value without its quotes, escapes and comment.
    pub value: String,
    /// The line it begins in, from 1.
    pub line: usize,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// What was expected, and what is there.
    pub text: String,
}

/// Reads a file's bytes: UTF-8, with or without a byte-order mark, or UTF-16.
pub fn parse(bytes: &[u8]) -> Document {
    let mut document = Document::default();
    let text = decode(bytes, &mut document.problems);
    let mut parser = Parser { text: text.chars().peekable(), line: 1, place: Place::Nowhere, document };
    while parser.statement() {}
    let mut document = parser.document;
    if document.problems.len() > MOST_PROBLEMS {
        let more = document.problems.len() - MOST_PROBLEMS;
        document.problems.truncate(MOST_PROBLEMS);
        let line = document.problems.last().map_or(1, |last| last.line);
        document.problems.push(Problem { line, text: format!("{more} more lines could not be read") });
    }
    document
}

/// A value as it has to be written to be read as this text.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\u{8}' => quoted.push_str("\\b"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// A file's words for a message: short, and without what a terminal would obey.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == EXCERPT {
            short.push('…');
            break;
        }
        if character.is_control() {
            // A string can be written to.
            let _ = write!(short, "{}", character.escape_default());
        } else {
            short.push(character);
        }
    }
    format!("`{short}`")
}

/// Editors of other systems write byte-order marks and UTF-16. UTF-16 without a mark is known by its zeroes: the first
/// character of such a file is ASCII.
fn decode(bytes: &[u8], problems: &mut Vec<Problem>) -> String {
    let mut wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16(&units).ok().filter(|_| bytes.len().is_multiple_of(2)).unwrap_or_else(|| {
            problems.push(Problem {
                line: 1,
                text: "the file is UTF-16 that ends or breaks within a character; save it as UTF-8".into(),
            });
            String::from_utf16_lossy(&units)
        })
    };
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest, problems),
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [1..=255, 0, ..] => wide(bytes, u16::from_le_bytes),
        [0, 1..=255, ..] => wide(bytes, u16::from_be_bytes),
        _ => utf8(bytes, problems),
    }
}

fn utf8(bytes: &[u8], problems: &mut Vec<Problem>) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            problems.push(Problem {
                line,
                text: "is not UTF-8; such bytes are read as \u{fffd}. Save the file as UTF-8".into(),
            });
            String::from_utf8_lossy(bytes).into_owned()
        }
    }
}

/// Where a key belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Before the first section.
    Nowhere,
    /// Under a section's name that could not be read: said once, for all of its keys.
    Unreadable,
    In(String, Option<String>),
}

struct Parser<'a> {
    text: Peekable<Chars<'a>>,
    line: usize,
    place: Place,
    document: Document,
}

impl Parser<'_> {
    /// Reads one statement, an empty line or a comment; whether there was one.
    fn statement(&mut self) -> bool {
        self.skip_blanks();
        let line = self.line;
        match self.text.peek() {
            None => return false,
            Some('\n') => {
                self.next();
            }
            Some('#' | ';') => self.skip_line(),
            Some('[') => {
                self.next();
                self.place = match self.section() {
                    Ok((name, subsection)) => Place::In(name, subsection),
                    Err(text) => {
                        self.problem(line, text);
                        self.skip_line();
                        Place::Unreadable
                    }
                };
            }
            Some(_) => self.entry(line),
        }
        true
    }

    /// The next character; the end of a line is one character, however it is written.
    fn next(&mut self) -> Option<char> {
        let mut character = self.text.next()?;
        if character == '\r' && self.text.peek() == Some(&'\n') {
            character = self.text.next()?;
        }
        if character == '\n' {
            self.line += 1;
        }
        Some(character)
    }

    fn skip_blanks(&mut self) {
        while self.text.next_if(|c| c.is_whitespace() && *c != '\n').is_some() {}
    }

    fn skip_line(&mut self) {
        while self.next().is_some_and(|c| c != '\n') {}
    }

    fn problem(&mut self, line: usize, text: String) {
        self.document.problems.push(Problem { line, text });
    }

    /// What follows an opening bracket, to the end of its line.
    fn section(&mut self) -> Result<(String, Option<String>), String> {
        let expected = |rest: &str| {
            format!("expected [section] or [section \"name\"], and got {}", excerpt(&format!("[{rest}")))
        };
        let mut name = String::new();
        while let Some(character) = self.text.next_if(|c| !matches!(c, ']' | '"' | '\n' | '#')) {
            name.push(character);
        }
        let mut subsection = None;
        if self.text.next_if_eq(&'"').is_some() {
            subsection = Some(self.subsection()?);
            self.skip_blanks();
        }
        if self.text.next_if_eq(&']').is_none() {
            return Err(expected(name.trim_end()));
        }
        self.skip_blanks();
        match self.text.peek() {
            None | Some('\n' | '#' | ';') => {}
            Some(_) => return Err(format!("nothing may stand behind [{}] in its line", name.trim())),
        }
        let name = name.trim();
        if name.is_empty() {
            return Err(expected("]"));
        }
        self.skip_line();
        Ok((name.into(), subsection))
    }

    /// What follows an opening quote in a section's line, to the closing one.
    fn subsection(&mut self) -> Result<String, String> {
        let mut name = String::new();
        loop {
            match self.text.next_if(|c| *c != '\n') {
                None => return Err("a quote is not closed in this line".into()),
                Some('"') => return Ok(name),
                // git: any escaped character is itself.
                Some('\\') => name.extend(self.text.next_if(|c| *c != '\n')),
                Some(other) => name.push(other),
            }
        }
    }

    fn entry(&mut self, line: usize) {
        let mut key = String::new();
        while let Some(character) = self.text.next_if(|c| !matches!(c, '=' | '\n' | '#')) {
            key.push(character);
        }
        let key = key.trim_end();
        if self.text.next_if_eq(&'=').is_none() {
            self.problem(line, format!("expected `key = value`, and got {}", excerpt(key)));
            return self.skip_line();
        }
        let value = self.value();
        let (section, subsection) = match &self.place {
            Place::Unreadable => return,
            Place::Nowhere => {
                let text = format!("{} stands before the first [section], and is not used", excerpt(key));
                return self.problem(line, text);
            }
            Place::In(section, subsection) => (section.clone(), subsection.clone()),
        };
        match value {
            Ok(_) if key.is_empty() => self.problem(line, "there is no key before the `=`".into()),
            Ok(value) => {
                self.document.entries.push(Entry { section, subsection, key: key.into(), value, line });
            }
            Err(reason) => self.problem(line, format!("{section}.{}: {reason}", excerpt(key))),
        }
    }

    /// What follows an equals sign, to the end of its last line.
    fn value(&mut self) -> Result<String, String> {
        self.skip_blanks();
        let mut value = String::new();
        // Where the value ends, if it ends with spaces that no quote protects.
        let mut kept = 0;
        let mut quoted = false;
        let mut wrong = None;
        while let Some(character) = self.next() {
            match character {
                '\n' => break,
                '"' => {
                    quoted = !quoted;
                    kept = value.len();
                    continue;
                }
                '\\' => match self.next() {
                    // The line goes on in the next one.
                    Some('\n') => continue,
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('b') => value.push('\u{8}'),
                    Some(other @ ('"' | '\\')) => value.push(other),
                    Some(other) => {
                        let escape = excerpt(&format!("\\{other}"));
                        wrong = Some(format!("{escape} is no escape; a backslash is written twice"));
                    }
                    None => wrong = Some("ends with a backslash".into()),
                },
                '#' if !quoted => {
                    self.skip_line();
                    break;
                }
                other => value.push(other),
            }
            if quoted || !character.is_whitespace() {
                kept = value.len();
            }
        }
        if let Some(reason) = wrong {
            return Err(reason);
        }
        if quoted {
            return Err("a quote is not closed".into());
        }
        value.truncate(kept);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Entries as `section[.subsection].key=value@line`.
    fn lines(document: &Document) -> Vec<String> {
        let line = |e: &Entry| {
            let subsection = e.subsection.as_ref().map(|s| format!(".{s}")).unwrap_or_default();
            format!("{}{subsection}.{}={}@{}", e.section, e.key, e.value, e.line)
        };
        document.entries.iter().map(line).collect()
    }

    #[test]
    fn what_people_write_is_read() {
        let document = parse(
            b"# mine \\\n[User]\r\nDefault = ada # me\r\n\n; old\n[ boot ] # x\ncommand = \"echo \\\"a # b\\\" \\\n  && true\"  \n\
              [distribution \"My \\\"box\\\".1\"]\nmemory=1GB",
        );
        assert_eq!(document.problems, []);
        assert_eq!(
            lines(&document),
            [
                "User.Default=ada@3",
                "boot.command=echo \"a # b\"   && true@7",
                "distribution.My \"box\".1.memory=1GB@10"
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line_and_the_rest_is_read() {
        let document = parse(
            b"early=1\n[a]\nnonsense\n=2\nb=\"open\nc=\\x\nd=1\n[broken\ne=1\n[a] b\nf=1\n[]\n[a \"b]\n[a]\ng=end\\",
        );
        let found: Vec<usize> = document.problems.iter().map(|p| p.line).collect();
        assert_eq!(found, [1, 3, 4, 5, 6, 8, 10, 12, 13, 15]);
        assert_eq!(lines(&document), ["a.d=1@7"], "keys of a section that cannot be read are nobody's");
    }

    #[test]
    fn other_encodings_are_read() {
        let text = "[user]\ndefault=zoë\n";
        let little = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let big = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        for bytes in [
            text.as_bytes().to_vec(),
            [&[0xef, 0xbb, 0xbf], text.as_bytes()].concat(),
            [vec![0xff, 0xfe], little(text)].concat(),
            [vec![0xfe, 0xff], big(text)].concat(),
            little(text),
            big(text),
        ] {
            let document = parse(&bytes);
            assert_eq!((lines(&document), document.problems), (vec!["user.default=zoë@2".into()], vec![]));
        }
        assert_eq!(parse(b"[user]\ndefault=zo\xeb\n").problems[0].line, 2);
        assert_eq!(parse(b"\xff\xfe[\0a").problems.len(), 2, "half a character, and half a section");
    }

    #[test]
    fn a_file_of_another_kind_is_not_repeated_line_by_line() {
        let problems = parse("what is this\n".repeat(1000).as_bytes()).problems;
        assert_eq!(problems.len(), MOST_PROBLEMS + 1);
        assert!(problems[MOST_PROBLEMS].text.contains("950 more"), "{:?}", problems[MOST_PROBLEMS]);
        let long = parse(format!("[a]\n{}\u{1b}[2J", "x".repeat(50)).as_bytes());
        assert!(!long.problems[0].text.contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            parse(&bytes);
        }

        #[test]
        fn no_text_of_its_own_signs_makes_it_panic(text in "[\\[\\]\"\\\\#;=\n\r a-c]{0,60}") {
            parse(text.as_bytes());
        }

        #[test]
        fn what_was_quoted_comes_back(values: Vec<String>, name: String) {
            let mut text = format!("[s {}]\n", quote(&name.replace(['\n', '\t', '\u{8}'], "")));
            for value in &values {
                text.push_str(&format!("key = {} # comment\n", quote(value)));
            }
            let document = parse(text.as_bytes());
            prop_assert_eq!(&document.problems, &[]);
            let got: Vec<&String> = document.entries.iter().map(|e| &e.value).collect();
            prop_assert_eq!(got, values.iter().collect::<Vec<_>>());
        }
    }
}
