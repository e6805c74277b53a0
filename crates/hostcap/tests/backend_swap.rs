//! A VMM swaps the backend behind the trait: `mockall`'s mock, and real sources, by one call.

use amdvi_hostcap::{
    Answer, Aspect, Fact, Facts, Feature, HostCapSource, HostCapSpec, MockHostCapSource, Offer,
    PciFunction, Request, Scope, Situation, SourceError, negotiate,
};
use mockall::predicate::eq;

const NIC: PciFunction = PciFunction::new(0, 0xc1, 0, 0);

/// What a VMM does, whatever the backend.
fn offer(backend: &dyn HostCapSource) -> Offer {
    let request = Request::new().with(Feature::NumInt2K, true);
    negotiate(&request, &Facts::collect([backend], &[NIC]))
}

fn mock() -> MockHostCapSource {
    let mut mock = MockHostCapSource::new();
    mock.expect_name()
        .return_const("iommufd:/dev/iommu".to_owned());
    mock.expect_situation().return_const(Situation::Passthrough);
    mock
}

fn yes<P: amdvi_hostcap::Phase>(aspect: Aspect, scope: Scope) -> Fact<P> {
    Fact::new(
        Feature::NumInt2K,
        true,
        aspect,
        scope,
        "iommufd:/dev/iommu",
        "seen",
    )
}

#[test]
fn swapping_the_backend_changes_the_offer_and_its_reason() {
    let mut granting = mock();
    granting
        .expect_early_facts()
        .times(1)
        .returning(|| Ok(vec![yes(Aspect::Hardware, Scope::Host)].into()));
    granting
        .expect_late_facts()
        .with(eq(NIC))
        .times(1)
        .returning(|function| Ok(vec![yes(Aspect::Kernel, Scope::Function(function))].into()));

    let mut silent = mock();
    silent
        .expect_early_facts()
        .returning(|| Ok(Answer::nothing()));
    silent
        .expect_late_facts()
        .returning(|_| Ok(Answer::nothing()));

    let legacy = "legacy-vfio".parse::<HostCapSpec>().unwrap().build();
    let none = "none".parse::<HostCapSpec>().unwrap().build();
    let backends: [(&dyn HostCapSource, bool, &str); 4] = [
        (&granting, true, "iommufd:/dev/iommu (0000:c1:00.0: seen)"),
        (&silent, false, "unknown is not yes"),
        (legacy.as_ref(), false, "512"),
        (none.as_ref(), true, "does not depend on the host"),
    ];
    for (backend, granted, said) in backends {
        let decision = offer(backend).decision(Feature::NumInt2K);
        assert_eq!(decision.is_granted(), granted, "{decision}");
        assert!(decision.reason.contains(said), "{decision}");
        assert!(decision.reason.contains(&backend.name()), "{decision}");
    }
}

#[test]
fn a_backend_that_fails_is_not_a_yes_and_its_error_reaches_the_reason() {
    let error = || SourceError::File {
        path: "/dev/iommu".into(),
        problem: "No such file or directory (os error 2)".to_owned(),
        remedy: "load the module iommufd".to_owned(),
    };
    let mut failing = mock();
    failing
        .expect_early_facts()
        .returning(|| Ok(vec![yes(Aspect::Hardware, Scope::Host)].into()));
    failing.expect_late_facts().returning(move |_| Err(error()));
    let decision = offer(&failing).decision(Feature::NumInt2K);
    assert!(!decision.is_granted());
    for part in [
        "iommufd:/dev/iommu could not tell about 0000:c1:00.0",
        "/dev/iommu: No such file",
        "load the module iommufd",
    ] {
        assert!(decision.reason.contains(part), "{decision}");
    }
}

#[test]
fn a_backend_can_be_kept_boxed_and_sent_to_another_thread() {
    let mut silent = mock();
    silent
        .expect_early_facts()
        .returning(|| Ok(Answer::nothing()));
    silent
        .expect_late_facts()
        .returning(|_| Ok(Answer::nothing()));
    let boxed: Box<dyn HostCapSource> = Box::new(silent);
    let offer = std::thread::spawn(move || offer(boxed.as_ref()))
        .join()
        .unwrap();
    assert!(!offer.is_granted(Feature::NumInt2K));
}
