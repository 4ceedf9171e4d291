//! Just enough HTTP and Prometheus to ask a member how it is.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// A stopped server gives an error, not a hung test.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The body of one page, whatever its status.
pub(super) fn get(socket: &Path, page: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // In HTTP 1.0 a body is not in chunks, and ends with the connection.
    write!(stream, "GET {page} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The sum of all values called `name` whose labels contain `label`; `None` if there are none.
pub(super) fn sum(metrics: &str, name: &str, label: &str) -> Option<f64> {
    let values = metrics.lines().filter_map(|line| {
        let (whole, value) = line.rsplit_once(' ')?;
        let labels = whole.strip_prefix(name)?;
        let ours = labels.is_empty() || labels.starts_with('{');
        (ours && labels.contains(label)).then(|| value.parse::<f64>().ok())?
    });
    values.reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
# TYPE one gauge
one 1.5e+01
one_more 7
many{method=\"Put\",type=\"a b\"} 2
many{method=\"Txn\",type=\"c\"} 3
";

    #[test]
    fn labels_are_summed() {
        assert_eq!(sum(METRICS, "one", ""), Some(15.0));
        assert_eq!(sum(METRICS, "many", ""), Some(5.0));
        assert_eq!(sum(METRICS, "many", "method=\"Txn\""), Some(3.0));
        assert_eq!(sum(METRICS, "many", "method=\"Range\""), None);
        assert_eq!(sum(METRICS, "man", ""), None);
    }
}
