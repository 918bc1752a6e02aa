//! Access control lists: from the text that tar writes to what the kernel takes.

/// The kinds of names that a list has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Looked up in /etc/passwd.
    User,
    /// Looked up in /etc/group.
    Group,
}

/// The attribute's value for a list such as `user::rw-,user:ada:r--:1000,group::r--,mask::r--,other::---`, whose entries
/// may be lines as well (acl(5), "ACL TEXT FORMS"; a number at an entry's end is star's, and holds before the name).
///
/// Value: version 2, then tag, permissions and id of each, little endian, in the order of the tags
/// (linux/posix_acl_xattr.h).
pub(super) fn value(
    text: &[u8],
    id_of: &mut dyn FnMut(Kind, &str) -> Option<u32>,
) -> Result<Vec<u8>, String> {
    const NO_ID: u32 = u32::MAX;
    let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
    let mut entries: Vec<(u16, u32, u16)> = Vec::new();
    for entry in text.split([',', '\n']).map(|e| e.split('#').next().unwrap_or_default().trim()) {
        if entry.is_empty() {
            continue;
        }
        let wrong = || format!("the entry {entry:?} makes no sense");
        let fields: Vec<&str> = entry.split(':').collect();
        let [kind, name, permissions, number @ ..] = fields.as_slice() else { return Err(wrong()) };
        let permissions = permissions.chars().try_fold(0, |sum, c| match c {
            'r' => Some(sum | 4),
            'w' => Some(sum | 2),
            'x' => Some(sum | 1),
            '-' => Some(sum),
            _ => None,
        });
        let permissions = permissions.ok_or_else(wrong)?;
        let mut id = |kind| {
            let number = number.first().or(Some(name)).and_then(|n| n.parse().ok());
            number.or_else(|| id_of(kind, name)).ok_or_else(|| format!("{name:?} is nobody in this root"))
        };
        let (tag, id) = match (*kind, name.is_empty()) {
            ("user" | "u", true) => (0x01, NO_ID),
            ("user" | "u", false) => (0x02, id(Kind::User)?),
            ("group" | "g", true) => (0x04, NO_ID),
            ("group" | "g", false) => (0x08, id(Kind::Group)?),
            ("mask" | "m", _) => (0x10, NO_ID),
            ("other" | "o", _) => (0x20, NO_ID),
            _ => return Err(wrong()),
        };
        entries.push((tag, id, permissions));
    }
    entries.sort_unstable();
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok(value)
}

/// The list that an attribute holds, in the kernel's order, with numbers for names; `None` for what is none.
pub(crate) fn text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != 2 || entries.is_empty() || !rest.is_empty() {
        return None;
    }
    let mut parsed = Vec::new();
    for [t0, t1, p0, p1, id @ ..] in entries {
        parsed.push((
            u16::from_le_bytes([*t0, *t1]),
            u32::from_le_bytes(*id),
            u16::from_le_bytes([*p0, *p1]),
        ));
    }
    parsed.sort_unstable();
    let mut lines = Vec::new();
    for (tag, id, permissions) in parsed {
        let (kind, id) = match tag {
            0x01 => ("user", None),
            0x02 => ("user", Some(id)),
            0x04 => ("group", None),
            0x08 => ("group", Some(id)),
            0x10 => ("mask", None),
            0x20 => ("other", None),
            _ => return None,
        };
        if permissions > 7 {
            return None;
        }
        let bit = |bit, letter| if permissions & bit != 0 { letter } else { '-' };
        let permissions: String = [bit(4, 'r'), bit(2, 'w'), bit(1, 'x')].iter().collect();
        // The number twice: who looks for a name finds none, and star's field behind the permissions holds before it.
        lines.push(match id {
            Some(id) => format!("{kind}:{id}:{permissions}:{id}"),
            None => format!("{kind}::{permissions}"),
        });
    }
    Some(lines.join(","))
}

/// The number of a name in a file such as /etc/passwd or /etc/group, whose third field it is in both.
pub(super) fn number_in(table: &[u8], name: &str) -> Option<u32> {
    let of = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b':');
        (fields.next()? == name.as_bytes()).then_some(())?;
        std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()
    };
    table.split(|b| *b == b'\n').find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_become_the_same_value_in_the_kernel_s_order() {
        let mut ada = |kind, name: &str| {
            let table: &[u8] = if kind == Kind::User { b"root:x:0:0::/:\nada:x:1000:7::/:\n" } else { b"" };
            number_in(table, name)
        };
        let lines =
            value(b"user::rw-\nuser:ada:r--\t#effective:r--\ngroup::r--\nmask::r--\nother::---\n", &mut ada)
                .unwrap();
        let one =
            value(b"other::---,user::rw-,user:bob:r--:1000,group::r--,mask::r--", &mut |_, _| None).unwrap();
        assert_eq!(lines, one);
        assert_eq!(lines[..12], [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(lines[12..20], [2, 0, 4, 0, 232, 3, 0, 0]);
        assert_eq!(lines.len(), 4 + 5 * 8);
    }

    #[test]
    fn a_list_is_written_as_it_is_read() {
        let list = "user::rw-,user:7:r-x:7,user:1000:r--:1000,group::r--,group:5:---:5,mask::rwx,other::---";
        let bytes = value(list.as_bytes(), &mut |_, _| None).unwrap();
        assert_eq!(text(&bytes).as_deref(), Some(list));
        for damage in [&bytes[..bytes.len() - 1], &bytes[..4], b"", &[&bytes[..4], &[9; 8]].concat()] {
            assert_eq!(text(damage), None);
        }
    }

    #[test]
    fn nonsense_is_named() {
        for text in ["user", "user::q", "x::r", "user:zaphod:r--"] {
            assert!(value(text.as_bytes(), &mut |_, _| None).is_err(), "{text}");
        }
    }
}
