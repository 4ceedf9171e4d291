//! What a server answers, without the driver's types.

use fred::{bytes::Bytes, types::Resp3Frame};

use super::LinkError;

/// One reply, or one element of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Array(Vec<Self>),
    /// A string, or a status such as `OK`.
    Bulk(Bytes),
    /// An error inside of an array; one that is the whole reply is a [`LinkError::Server`].
    Error(String),
    Int(i64),
    Nil,
}

impl Reply {
    /// # Errors
    /// [`LinkError::Server`] if the whole reply is an error.
    pub(super) fn from_frame(frame: Resp3Frame) -> Result<Self, LinkError> {
        match Self::convert(frame) {
            Self::Error(text) => Err(LinkError::server(&text)),
            reply => Ok(reply),
        }
    }

    /// Besides RESP2's types, those of RESP3, which a client given by the user may speak.
    fn convert(frame: Resp3Frame) -> Self {
        match frame {
            Resp3Frame::BlobString { data, .. }
            | Resp3Frame::SimpleString { data, .. }
            | Resp3Frame::BigNumber { data, .. }
            | Resp3Frame::VerbatimString { data, .. } => Self::Bulk(data),
            Resp3Frame::Number { data, .. } => Self::Int(data),
            Resp3Frame::Null => Self::Nil,
            Resp3Frame::Array { data, .. } | Resp3Frame::Push { data, .. } => {
                Self::Array(data.into_iter().map(Self::convert).collect())
            }
            Resp3Frame::SimpleError { data, .. } => Self::Error(data.to_string()),
            Resp3Frame::BlobError { data, .. } => {
                Self::Error(String::from_utf8_lossy(&data).into_owned())
            }
            Resp3Frame::Boolean { data, .. } => Self::Int(i64::from(data)),
            Resp3Frame::Double { data, .. } => Self::Bulk(data.to_string().into()),
            Resp3Frame::Set { data, .. } => {
                Self::Array(data.into_iter().map(Self::convert).collect())
            }
            Resp3Frame::Map { data, .. } => Self::Array(
                data.into_iter()
                    .flat_map(|(key, value)| [Self::convert(key), Self::convert(value)])
                    .collect(),
            ),
            Resp3Frame::Hello { .. } | Resp3Frame::ChunkedString { .. } => {
                Self::Error("ERR a frame that no command asked for".to_owned())
            }
        }
    }
}
