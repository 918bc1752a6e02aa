//! String instructions with a repeat prefix: TCG executes, and counts, each iteration by itself.

/// Whether an instruction is MOVS, STOS, LODS, CMPS, SCAS, INS or OUTS with a repeat prefix (AMD64 Architecture
/// Programmer's Manual, volume 3, section 1.2.6).
pub(crate) fn is_repeated_string(instruction: &[u8]) -> bool {
    let mut repeated = false;
    for &byte in instruction {
        match byte {
            0xf2 | 0xf3 => repeated = true,
            // Operand size, address size, segments, REX.
            0x66 | 0x67 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x40..=0x4f => {}
            0xa4..=0xa7 | 0xaa..=0xaf | 0x6c..=0x6f => return repeated,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_instructions_are_told_from_others() {
        assert!(is_repeated_string(&[0xf3, 0x48, 0xab]), "rep stosq");
        assert!(is_repeated_string(&[0xf3, 0xa4]), "rep movsb");
        assert!(!is_repeated_string(&[0x48, 0xab]), "stosq");
        assert!(!is_repeated_string(&[0xf3, 0x90]), "pause");
        assert!(!is_repeated_string(&[0xf3, 0x0f, 0x1e, 0xfa]), "endbr64");
    }
}
