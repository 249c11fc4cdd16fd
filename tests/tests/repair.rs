//! A repair does what the commits do that it stands for: the fuzz target of `godwit_tests::fuzz::repairs` on random histories,
//! which shrink.

use godwit_tests::fuzz::repairs::repairs;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_repair_does_what_its_commits_do(bytes in prop::collection::vec(any::<u8>(), 0..900)) {
        repairs(&bytes);
    }
}
