//! Where a frame of the Redis protocol ends, and what is in it, as far as the proxy must know.

/// The length of the first whole frame, RESP2 or RESP3; `None` if there is none yet.
///
/// An inline request is a line, and so is whatever begins with an unknown byte.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let line = line_end(bytes)?;
    let head = &bytes[1..line - 2];
    match bytes[0] {
        b'$' | b'!' | b'=' => match number(head) {
            Some(length) => {
                let end = line + length + 2;
                (end <= bytes.len()).then_some(end)
            }
            None => Some(line),
        },
        kind @ (b'*' | b'~' | b'>' | b'%' | b'|') => {
            let elements =
                number(head).unwrap_or(0) * if matches!(kind, b'%' | b'|') { 2 } else { 1 };
            let mut end = line;
            for _ in 0..elements {
                end += length(&bytes[end..])?;
            }
            if kind == b'|' {
                // Attributes come before the frame they belong to.
                end += length(&bytes[end..])?;
            }
            Some(end)
        }
        _ => Some(line),
    }
}

/// The strings of a flat array such as a request; for anything else, the words of its first line.
pub(super) fn strings(frame: &[u8]) -> Vec<Vec<u8>> {
    let Some(line) = line_end(frame) else { return Vec::new() };
    if !matches!(frame[0], b'*' | b'>') {
        let words = frame[..line - 2].split(|&byte| byte == b' ');
        return words.filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect();
    }
    let mut strings = Vec::new();
    let mut rest = &frame[line..];
    while let Some(end) = length(rest) {
        let (element, after) = rest.split_at(end);
        rest = after;
        let head = line_end(element).unwrap_or(element.len());
        strings.push(match element[0] {
            b'$' if head < end => element[head..end - 2].to_vec(),
            _ => element[1..head.saturating_sub(2).max(1)].to_vec(),
        });
    }
    strings
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    // Even an empty line has no first byte to look at but its own end.
    Some(end.max(3).min(bytes.len()))
}

/// `None` for -1, which is nil.
fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_frame_ends_where_it_ends() {
        let frames: &[&[u8]] = &[
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":12\r\n",
            b"$5\r\nhe\r\nl\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            b"%1\r\n+a\r\n:1\r\n",
            b">2\r\n+message\r\n$1\r\nx\r\n",
            b"|1\r\n+a\r\n:1\r\n+OK\r\n",
            b"_\r\n",
            b"PING\r\n",
        ];
        for frame in frames {
            let mut bytes = frame.to_vec();
            assert_eq!(length(&bytes), Some(frame.len()), "{frame:?}");
            bytes.extend_from_slice(b"+next\r\n");
            assert_eq!(length(&bytes), Some(frame.len()), "{frame:?} and more");
            for cut in 0..frame.len() {
                assert_eq!(length(&frame[..cut]), None, "{frame:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_request_is_its_arguments() {
        let request = b"*3\r\n$3\r\nSET\r\n$1\r\n\r\r\n$0\r\n\r\n";
        assert_eq!(strings(request), [b"SET".to_vec(), b"\r".to_vec(), Vec::new()]);
        assert_eq!(strings(b"PING  now\r\n"), [b"PING".to_vec(), b"now".to_vec()]);
        assert_eq!(strings(b"*2\r\n$-1\r\n:7\r\n"), [b"-1".to_vec(), b"7".to_vec()]);
    }
}
