//! The supported versions of the CNI specification.

use crate::error::{Code, Error, Result};

/// A supported version. Later versions compare as greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub(crate) const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The version of a configuration without `cniVersion`.
    pub(crate) const UNNAMED: Self = Self::V0_1_0;

    /// The version in errors about a configuration that could not be read.
    pub(crate) const CURRENT: Self = Self::V1_1_0;

    /// Returns the version as in the configuration.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Parses the configuration's `cniVersion`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            Error::new(Code::IncompatibleVersion, format!("cniVersion {text:?} is not supported; use one of {known}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_back_and_later_ones_are_greater() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()).unwrap(), version);
        }
        assert!(Version::ALL.is_sorted());
        for unknown in ["", "0.0.1", "0.5.0", "1.2.0", "1.1", "v1.0.0"] {
            assert_eq!(Version::parse(unknown).unwrap_err().code, Code::IncompatibleVersion, "{unknown}");
        }
    }
}
