//! What the plugin writes, and the instructions it writes it for.

use crate::count::Counters;

/// VMRUN rAX (AMD64 Architecture Programmer's Manual, volume 3).
pub(crate) const VMRUN: [u8; 3] = [0x0f, 0x01, 0xd8];

/// The marker behind which a new run begins: executed in L1 just before the program under test.
pub(crate) const BEGIN: u16 = 1;

/// The markers around a part of what the program does.
pub(crate) const SPAN_BEGIN: u16 = 3;
/// The other one.
pub(crate) const SPAN_END: u16 = 4;

/// `nopl disp32(%rax,%rax,1)`: a NOP of 8 bytes, the last four of which mean nothing to the processor.
const NOP: [u8; 4] = [0x0f, 0x1f, 0x84, 0x00];

/// The upper half of a marker's displacement, `"UC"`: compilers and kernels pad with this NOP too, with 0.
const MARK: [u8; 2] = [0x43, 0x55];

/// The tag of a marker: of the NOP whose displacement is `0x5543_0000 + tag`.
pub(crate) fn marker_tag(instruction: &[u8]) -> Option<u16> {
    let displacement = instruction.strip_prefix(&NOP)?;
    match *displacement {
        [low, high, a, b] if [a, b] == MARK => Some(u16::from_le_bytes([low, high])),
        _ => None,
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A marker with this tag was executed.
    Marker(u16),
    /// L2 is about to be entered, for the first time since [`BEGIN`].
    Vmrun,
    /// L2 is about to execute a user instruction, for the first time since [`BEGIN`].
    L2User,
    /// L1 is about to execute its first user instruction.
    L1User,
    /// The machine was switched off.
    End,
}

/// A line of the output: the event, then `name=value` for each counter as it was before the instruction.
pub(crate) fn line(event: Event, counters: Counters) -> String {
    let event = match event {
        Event::Marker(tag) => format!("marker-{tag}"),
        Event::Vmrun => "vmrun".into(),
        Event::L2User => "l2-user".into(),
        Event::L1User => "l1-user".into(),
        Event::End => "end".into(),
    };
    let Counters { l1_kernel, l1_user, l2_kernel, l2_user, l1_iterations, l2_iterations, vmruns } = counters;
    format!(
        "{event} l1_kernel={l1_kernel} l1_user={l1_user} l2_kernel={l2_kernel} l2_user={l2_user} \
         l1_iterations={l1_iterations} l2_iterations={l2_iterations} vmruns={vmruns}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_told_from_padding() {
        assert_eq!(marker_tag(&[0x0f, 0x1f, 0x84, 0x00, 0x34, 0x12, 0x43, 0x55]), Some(0x1234));
        assert_eq!(marker_tag(&[0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0]), None);
        assert_eq!(marker_tag(&[0x0f, 0x1f, 0x84]), None);
        assert_eq!(marker_tag(&VMRUN), None);
    }

    #[test]
    fn a_line_names_each_counter() {
        let counters = Counters { l1_kernel: 1, vmruns: 2, ..Counters::default() };
        assert_eq!(
            line(Event::Marker(7), counters),
            "marker-7 l1_kernel=1 l1_user=0 l2_kernel=0 l2_user=0 l1_iterations=0 l2_iterations=0 vmruns=2\n"
        );
    }
}
