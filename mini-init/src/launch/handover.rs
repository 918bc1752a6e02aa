//! Descriptors from the preparer to the child, over a pair of sockets (unix(7), SCM_RIGHTS).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The most descriptors that are handed over.
pub(super) const MOST: usize = 64;
/// Room for them as ancillary data.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST));

/// The two ends.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The longest word that goes with them, in bytes.
const WORD: usize = 64;

/// Sends descriptors and a word about them; the receiver has them even if this process ends at once.
pub(super) fn send(socket: &OwnedFd, descriptors: &[OwnedFd], word: &[u8]) -> io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The room is rounded up, so that more might fit here than the other side has room for.
    if borrowed.len() > MOST || !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other(format!("{} mounts are more than {MOST}", borrowed.len())));
    }
    if word.len() > WORD {
        return Err(io::Error::other(format!("a word of {} bytes is longer than {WORD}", word.len())));
    }
    // A message without a byte would look like the end.
    sendmsg(socket, &[IoSlice::new(&[1]), IoSlice::new(word)], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Waits for descriptors and the word; `None` if the other side has ended without sending any.
pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<(Vec<OwnedFd>, Vec<u8>)>> {
    let mut bytes = [0; 1 + WORD];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let mut all = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            all.extend(descriptors);
        }
    }
    Ok(Some((all, bytes.get(1..got.bytes).unwrap_or_default().to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(number: usize) -> Vec<OwnedFd> {
        (0..number).map(|_| tempfile::tempfile().unwrap().into()).collect()
    }

    #[test]
    fn descriptors_arrive_in_order_and_outlive_their_sender() {
        use std::os::unix::fs::MetadataExt;
        let (one, other) = pair().unwrap();
        let sent = files(9);
        let inode = |fd: &OwnedFd| std::fs::File::from(fd.try_clone().unwrap()).metadata().unwrap().ino();
        let before: Vec<u64> = sent.iter().map(inode).collect();
        send(&one, &sent, &[0, 2]).unwrap();
        drop((one, sent));
        let (received, word) = receive(&other).unwrap().unwrap();
        assert_eq!(word, [0, 2]);
        assert_eq!(received.iter().map(inode).collect::<Vec<_>>(), before);
        assert!(receive(&other).unwrap().is_none());
    }

    #[test]
    fn too_many_are_refused_here() {
        let (one, _other) = pair().unwrap();
        assert!(send(&one, &files(MOST), &[0; WORD]).is_ok());
        assert!(send(&one, &files(MOST + 1), &[]).is_err());
        assert!(send(&one, &files(1), &[0; WORD + 1]).is_err());
    }
}
