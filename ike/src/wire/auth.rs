//! Certificate, Certificate Request and Authentication payloads (RFC 7296 3.6 to 3.8).

use super::numbers::{AuthMethod, CertificateEncoding};
use super::reader::{Codec, InvalidMessage, Reader};

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Encoding of the certificate.
    pub encoding: CertificateEncoding,
    /// Certificate data. For [`CertificateEncoding::X509Signature`] it is one DER certificate.
    pub data: Vec<u8>,
}

impl Codec for Certificate {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.encoding.into());
        out.extend_from_slice(&self.data);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        Ok(Self { encoding: reader.u8()?.into(), data: reader.rest().to_vec() })
    }
}

/// The certificates that the sender can verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Encoding of the requested certificates.
    pub encoding: CertificateEncoding,
    /// Certification authorities: for X.509, the concatenated SHA-1 hashes of their
    /// SubjectPublicKeyInfo, 20 octets each.
    pub authorities: Vec<u8>,
}

impl Codec for CertificateRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.encoding.into());
        out.extend_from_slice(&self.authorities);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        Ok(Self { encoding: reader.u8()?.into(), authorities: reader.rest().to_vec() })
    }
}

/// The contents of an AUTH payload (RFC 7296 3.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// Authentication method.
    pub method: AuthMethod,
    /// Authentication data.
    pub data: Vec<u8>,
}

impl Codec for Authentication {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.method.into());
        out.extend_from_slice(&[0; 3]);
        out.extend_from_slice(&self.data);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let method = reader.u8()?.into();
        reader.array::<3>()?;
        Ok(Self { method, data: reader.rest().to_vec() })
    }
}
