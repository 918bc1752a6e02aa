//! The beginning of a filter: a search for the call's number among those that are allowed whatever their arguments are.
//!
//! seccompiler compares a number with each one of its rules in turn. For each filter that is put on, the kernel asks it for
//! every system call there is, so as to remember which are always allowed (`seccomp_cache_prepare` in kernel/seccomp.c):
//! with fifty rules that took a tenth of the instructions before a machine's first VM entry. A search in ranges needs six or
//! seven comparisons. What it does not find is left to the program behind it, so it can only allow what its list has.

use std::collections::BTreeSet;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, c_uint,
};
use seccompiler::{BpfProgram, sock_filter};

/// Offsets in `struct seccomp_data`, and x86-64's calls among those of other kinds (linux/seccomp.h, linux/audit.h).
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const ARCHITECTURE_X86_64: u32 = 0xc000_003e;

/// An instruction whose jumps are not known yet.
struct Instruction {
    code: c_uint,
    value: u32,
    then: Target,
    otherwise: Target,
}

#[derive(Clone, Copy)]
enum Target {
    /// So many instructions are skipped.
    Skip(usize),
    Allow,
    /// The program behind this one.
    Rest,
}

const NEXT: Target = Target::Skip(0);

/// `rest`, behind a search for these numbers.
///
/// The search is left out if its jumps would be longer than a filter's can be (255 instructions), which some hundred numbers
/// far from each other would be needed for.
pub(super) fn allow_before(numbers: &BTreeSet<u32>, rest: BpfProgram) -> BpfProgram {
    let mut program = search(&ranges(numbers)).unwrap_or_default();
    program.extend(rest);
    program
}

/// Numbers in a row as pairs of the first and the last.
fn ranges(numbers: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

fn search(ranges: &[(u32, u32)]) -> Option<BpfProgram> {
    let load =
        |offset| Instruction { code: BPF_LD | BPF_W | BPF_ABS, value: offset, then: NEXT, otherwise: NEXT };
    let compare = BPF_JMP | BPF_JEQ | BPF_K;
    let mut code = vec![
        load(OFFSET_ARCHITECTURE),
        Instruction { code: compare, value: ARCHITECTURE_X86_64, then: NEXT, otherwise: Target::Rest },
        load(OFFSET_NUMBER),
    ];
    code.extend(subtree(ranges));
    let allow = code.len();
    code.push(Instruction { code: BPF_RET | BPF_K, value: SECCOMP_RET_ALLOW, then: NEXT, otherwise: NEXT });
    let resolve = |(at, instruction): (usize, &Instruction)| {
        let distance = |target| match target {
            Target::Skip(count) => u8::try_from(count),
            Target::Allow => u8::try_from(allow - at - 1),
            Target::Rest => u8::try_from(allow - at),
        };
        Some(sock_filter {
            code: u16::try_from(instruction.code).ok()?,
            jt: distance(instruction.then).ok()?,
            jf: distance(instruction.otherwise).ok()?,
            k: instruction.value,
        })
    };
    code.iter().enumerate().map(resolve).collect()
}

fn subtree(ranges: &[(u32, u32)]) -> Vec<Instruction> {
    let jump = |condition, value, then, otherwise| Instruction {
        code: BPF_JMP | condition | BPF_K,
        value,
        then,
        otherwise,
    };
    match ranges {
        [] => vec![jump(BPF_JGE, 0, Target::Rest, Target::Rest)],
        [(first, last)] if first == last => vec![jump(BPF_JEQ, *first, Target::Allow, Target::Rest)],
        [(first, last)] => {
            vec![jump(BPF_JGE, *first, NEXT, Target::Rest), jump(BPF_JGT, *last, Target::Rest, Target::Allow)]
        }
        ranges => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let lower = subtree(lower);
            let mut code = vec![jump(BPF_JGE, upper[0].0, Target::Skip(lower.len()), NEXT)];
            code.extend(lower);
            code.extend(subtree(upper));
            code
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSE: u32 = 7;

    /// What the program returns for a call, and how many instructions it took.
    fn run(program: &BpfProgram, architecture: u32, number: u32) -> (u32, usize) {
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            let code = c_uint::from(code);
            (at, steps) = (at + 1, steps + 1);
            let holds = match code & !BPF_JMP {
                _ if code == BPF_RET | BPF_K => return (k, steps),
                _ if code == BPF_LD | BPF_W | BPF_ABS => {
                    accumulator = if k == OFFSET_NUMBER { number } else { architecture };
                    continue;
                }
                BPF_JEQ => accumulator == k,
                BPF_JGE => accumulator >= k,
                BPF_JGT => accumulator > k,
                other => panic!("{other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    fn program(numbers: &BTreeSet<u32>) -> BpfProgram {
        allow_before(numbers, vec![sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: REFUSE }])
    }

    #[test]
    fn exactly_the_numbers_of_the_list_are_allowed_and_only_of_this_architecture() {
        for numbers in [vec![], vec![0], vec![5, 6, 7], vec![0, 1, 3, 9, 11, 12, 13, 40, 202, 203, 435]] {
            let numbers = numbers.into_iter().collect();
            let program = program(&numbers);
            for number in (0..500).chain([0x4000_0000, u32::MAX]) {
                let expected = if numbers.contains(&number) { SECCOMP_RET_ALLOW } else { REFUSE };
                assert_eq!(run(&program, ARCHITECTURE_X86_64, number).0, expected, "{number}");
                assert_eq!(run(&program, 0x4000_0003, number).0, REFUSE);
            }
        }
    }

    #[test]
    fn fifty_numbers_apart_take_a_few_comparisons_and_too_many_are_left_to_the_rest() {
        let apart = |count: u32| (0..count).map(|number| number * 3).collect::<BTreeSet<_>>();
        let fifty = program(&apart(50));
        assert!((0..160).all(|number| run(&fifty, ARCHITECTURE_X86_64, number).1 <= 11));
        assert_eq!(program(&apart(1000)).len(), 1);
    }
}
