//! Marks in the sound itself, so that a frame is known again on the other side of the relay.
//!
//! All sound here is A-law: a square wave, loud enough to be a voice to the relay's echo guard.

/// 20 ms.
pub const FRAME: usize = 160;
const CALLER: [u8; 4] = [0x8a, 0x0b, 0x8c, 0x0d];
const AGENT: [u8; 4] = [0x9a, 0x1b, 0x9c, 0x1d];
const SILENCE: u8 = 0xd5;

/// A frame of the caller's voice, by its number.
pub fn caller(number: u32) -> [u8; FRAME] {
    let mut frame = wave(0x8a);
    put(&mut frame, CALLER, number);
    frame
}

/// The caller listens.
pub fn silence() -> [u8; FRAME] {
    [SILENCE; FRAME]
}

/// A frame of the agent's voice: of which turn, and its place in it.
pub fn agent(turn: u16, place: u16) -> [u8; FRAME] {
    let mut frame = wave(0x9a);
    put(&mut frame, AGENT, u32::from(turn) << 16 | u32::from(place));
    frame
}

/// The number of a frame of the caller's; nothing if it is silence, or was made up.
pub fn read_caller(frame: &[u8]) -> Option<u32> {
    read(frame, CALLER)
}

/// Turn and place of a frame of the agent's.
pub fn read_agent(frame: &[u8]) -> Option<(u16, u16)> {
    read(frame, AGENT).map(|tag| ((tag >> 16) as u16, tag as u16))
}

fn wave(level: u8) -> [u8; FRAME] {
    std::array::from_fn(|at| if at % 2 == 0 { level } else { level ^ 0x80 })
}

fn put(frame: &mut [u8; FRAME], whose: [u8; 4], tag: u32) {
    if let Some(head) = frame.first_chunk_mut::<8>() {
        let [a, b, c, d] = tag.to_be_bytes();
        let [w, x, y, z] = whose;
        *head = [w, x, y, z, a, b, c, d];
    }
}

fn read(frame: &[u8], whose: [u8; 4]) -> Option<u32> {
    let (head, rest) = frame.split_first_chunk::<4>()?;
    (*head == whose).then(|| rest.first_chunk().map(|tag| u32::from_be_bytes(*tag)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_known_again_and_silence_is_nobodys() {
        assert_eq!(read_caller(&caller(70_000)), Some(70_000));
        assert_eq!(read_agent(&agent(3, 9)), Some((3, 9)));
        assert_eq!(read_agent(&caller(7)), None);
        assert_eq!(read_caller(&silence()), None);
    }
}
