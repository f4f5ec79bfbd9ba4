//! The table of key exchange methods. A new method is a variant of [`Group`], a row here and a file
//! beside this one.

use std::fmt;

use super::diffie_hellman::DiffieHellman;
use super::method::KeyExchangeMethod;
use super::p256::P256;
use super::x25519::X25519;
use crate::config::Group;

macro_rules! methods {
    ($($group:ident = $transform_id:literal $name:literal $method:ty;)+) => {
        impl Group {
            /// Its transform ID, which also stands in the Key Exchange payload.
            pub fn number(self) -> u16 {
                match self {
                    $(Self::$group => $transform_id,)+
                }
            }

            /// The method with this transform ID. `None` if we do not have it.
            pub fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($transform_id => Some(Self::$group),)+
                    _ => None,
                }
            }

            pub(super) fn method(self) -> &'static dyn KeyExchangeMethod {
                match self {
                    $(Self::$group => &<$method>::METHOD,)+
                }
            }
        }

        impl fmt::Display for Group {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$group => $name,)+
                })
            }
        }
    };
}

// Group, transform ID, name in logs and errors, implementation.
methods! {
    P256 = 19 "ECP_256" DiffieHellman<P256>;
    X25519 = 31 "CURVE_25519" DiffieHellman<X25519>;
}
