//! Frames of the control channel: a length, a kind, a payload. Input is checked against limits before it is used.

use std::io::{self, Read, Write};

/// Most bytes of a payload.
pub(super) const MOST: usize = 1 << 20;

/// The meaning of a frame. A rank sends `Hello`, `Stop`, `Leave`; rank 0 `Welcome`, `Refused`, `Command`, `Failed`, `Leave`; either `Beat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    Hello,
    Welcome,
    Refused,
    /// The sender is alive.
    Beat,
    /// A command for the followers.
    Command,
    /// The job is over, with the reason.
    Failed,
    /// The sender ends: with an error, or empty when it is done.
    Leave,
    /// The sender was asked to stop.
    Stop,
}

impl FrameKind {
    const ALL: [Self; 8] =
        [Self::Hello, Self::Welcome, Self::Refused, Self::Beat, Self::Command, Self::Failed, Self::Leave, Self::Stop];
}

/// Sends a frame with one write.
pub(super) fn send(stream: &mut impl Write, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    let payload = &payload[..payload.len().min(MOST)];
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend(payload);
    stream.write_all(&bytes)
}

/// Reads frames from a stream whose reads may time out within a frame.
#[derive(Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// The next frame; None if the read timed out before it was complete.
    ///
    /// # Errors
    /// Those of the stream, `UnexpectedEof` at its end, `InvalidData` for an invalid frame.
    pub fn next(&mut self, stream: &mut impl Read) -> io::Result<Option<(FrameKind, Vec<u8>)>> {
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(frame));
            }
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.bytes.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn whole(&mut self) -> io::Result<Option<(FrameKind, Vec<u8>)>> {
        let Some((&[a, b, c, d, kind], rest)) = self.bytes.split_first_chunk::<5>() else { return Ok(None) };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let known = FrameKind::ALL.get(usize::from(kind)).copied();
        let Some(kind) = known.filter(|_| len <= MOST) else { return Err(io::ErrorKind::InvalidData.into()) };
        let Some(payload) = rest.get(..len).map(<[u8]>::to_vec) else { return Ok(None) };
        self.bytes.drain(..5 + len);
        Ok(Some((kind, payload)))
    }
}

/// Writes the fields of a payload.
#[derive(Default)]
pub(super) struct Fields(pub Vec<u8>);

impl Fields {
    pub fn number(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub fn text(mut self, text: &str) -> Self {
        let text = &text.as_bytes()[..text.len().min(1024)];
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text);
        self
    }
}

/// Reads the fields of a payload: None if it ends early.
pub(super) struct Parser<'a>(pub &'a [u8]);

impl Parser<'_> {
    pub fn number(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    /// Control characters are escaped: it may be printed.
    pub fn text(&mut self) -> Option<String> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let text = rest.get(..u32::from_le_bytes(*len) as usize)?;
        self.0 = &rest[text.len()..];
        Some(printable(text))
    }
}

/// External bytes as one printable line.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_pieces_and_nothing_unbounded_is_believed() {
        let mut bytes = Vec::new();
        send(&mut bytes, FrameKind::Command, b"step").unwrap();
        send(&mut bytes, FrameKind::Beat, b"").unwrap();
        let mut reader = Reader::default();
        let mut found = Vec::new();
        for byte in &bytes {
            // A stream of one byte ends after it.
            match reader.next(&mut &[*byte][..]) {
                Ok(frame) => found.extend(frame),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
            }
        }
        assert_eq!(found, [(FrameKind::Command, b"step".to_vec()), (FrameKind::Beat, Vec::new())]);
        for bad in [&[255, 255, 255, 255, 1][..], &[0, 0, 0, 0, 99], b"GET / HTTP/1.1\r\n\r\n"] {
            let error = Reader::default().next(&mut &bad[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }

    #[test]
    fn fields_that_end_early_are_none() {
        let payload = Fields::default().number(7).text("a\nb").0;
        for len in 0..payload.len() {
            let mut parser = Parser(&payload[..len]);
            assert!(parser.number().is_none() || parser.text().is_none());
        }
        let mut parser = Parser(&payload);
        assert_eq!((parser.number(), parser.text()), (Some(7), Some("a b".into())));
    }
}
