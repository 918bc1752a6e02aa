//! What a module says of itself: the `.modinfo` section of a `.ko` file, `key=value` strings that end in NUL.
//!
//! Offsets are those of ELF-64 (System V ABI, "ELF Header", "Sections").

/// The strings of interest.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct ModInfo {
    /// Modules that must be loaded before (`depends`), as the kernel spells them: with `_` or with `-`.
    pub(crate) depends: Vec<String>,
    /// What the kernel or a program may ask for instead of the name (`alias`), with shell wildcards.
    pub(crate) aliases: Vec<String>,
    /// `softdep: pre: …`: to be loaded before, if they are there.
    pub(crate) pre: Vec<String>,
    /// The raw `softdep` strings.
    pub(crate) softdeps: Vec<String>,
}

/// The module information of an object file.
pub(crate) fn read(object: &[u8]) -> Result<ModInfo, &'static str> {
    let section = section(object, b".modinfo")?;
    let mut info = ModInfo::default();
    for entry in section.split(|&b| b == 0) {
        let Ok(entry) = str::from_utf8(entry) else { continue };
        match entry.split_once('=') {
            Some(("depends", list)) => {
                info.depends.extend(list.split(',').filter(|s| !s.is_empty()).map(str::to_owned));
            }
            Some(("alias", alias)) => info.aliases.push(alias.to_owned()),
            Some(("softdep", text)) => {
                info.softdeps.push(text.to_owned());
                info.pre.extend(softdep_pre(text).map(str::to_owned));
            }
            _ => {}
        }
    }
    Ok(info)
}

/// The names after `pre:` up to `post:`.
fn softdep_pre(text: &str) -> impl Iterator<Item = &str> {
    let mut pre = false;
    text.split_whitespace().filter(move |word| match *word {
        "pre:" => {
            pre = true;
            false
        }
        "post:" => {
            pre = false;
            false
        }
        _ => pre,
    })
}

/// The content of the section of this name.
fn section<'a>(object: &'a [u8], name: &[u8]) -> Result<&'a [u8], &'static str> {
    let short = "cut off";
    if !object.starts_with(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit little-endian ELF object");
    }
    let u16_at = |at: usize| {
        object
            .get(at..)
            .and_then(<[u8]>::first_chunk)
            .map(|b| usize::from(u16::from_le_bytes(*b)))
            .ok_or(short)
    };
    let u64_at = |at: usize| {
        let bytes = object.get(at..).and_then(<[u8]>::first_chunk).ok_or(short)?;
        usize::try_from(u64::from_le_bytes(*bytes)).map_err(|_| short)
    };
    let u32_at = |at: usize| {
        object.get(at..).and_then(<[u8]>::first_chunk).map(|b| u32::from_le_bytes(*b) as usize).ok_or(short)
    };
    let (table, size, count, names) = (u64_at(0x28)?, u16_at(0x3a)?, u16_at(0x3c)?, u16_at(0x3e)?);
    if size < 64 {
        return Err("its section headers are too short");
    }
    let header = |index: usize| index.checked_mul(size).and_then(|o| o.checked_add(table)).ok_or(short);
    let content = |index: usize| {
        let at = header(index)?;
        // An offset past the end of memory would overflow in the callee's addition; the file bounds it first.
        if at > object.len() {
            return Err(short);
        }
        let (start, length) = (u64_at(at + 0x18)?, u64_at(at + 0x20)?);
        let end = start.checked_add(length).ok_or(short)?;
        object.get(start..end).ok_or(short)
    };
    let names = content(names)?;
    for index in 0..count {
        let at = header(index)?;
        if at > object.len() {
            return Err(short);
        }
        let this = names.get(u32_at(at)?..).unwrap_or_default();
        if this.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
            return content(index);
        }
    }
    Err("it has no .modinfo section")
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An object file with nothing but a `.modinfo` section.
    pub(crate) fn object(modinfo: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + modinfo.len());
        let table = names_at + names.len();
        let mut object = vec![0; 64];
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        object[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        object[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        object[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
        object[0x3e..0x40].copy_from_slice(&2_u16.to_le_bytes());
        object.extend_from_slice(modinfo.as_bytes());
        object.extend_from_slice(names);
        for (name, at, length) in [(0_u32, 0, 0), (1, info_at, modinfo.len()), (10, names_at, names.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            object.extend_from_slice(&header);
        }
        object
    }

    #[test]
    fn strings_are_found() {
        let info = read(&object(
            "license=GPL\0softdep=pre: crc32c foo post: bar\0alias=fs-ext4\0alias=ext4\0depends=jbd2,mbcache\0",
        ))
        .unwrap();
        assert_eq!(info.depends, ["jbd2", "mbcache"]);
        assert_eq!(info.aliases, ["fs-ext4", "ext4"]);
        assert_eq!(info.pre, ["crc32c", "foo"]);
    }

    #[test]
    fn what_is_no_module_is_an_error() {
        assert!(read(b"\x7fELF\x02\x01").is_err());
        assert!(read(b"text").is_err());
    }

    proptest! {
        #[test]
        fn no_object_makes_it_panic(at in 0_usize..400, bytes in any::<[u8; 8]>(), length in 0_usize..500) {
            let mut object = object("depends=jbd2\0");
            let end = object.len();
            if at + 8 <= end {
                object[at..at + 8].copy_from_slice(&bytes);
            }
            object.truncate(length);
            let _ = read(&object);
        }
    }
}
