//! 2048 interrupts of one function as GSI routes, one KVM call for all of them.

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::msi::DeliveryMode;
use amdvi_vmm_glue::kvm::{KvmMessage, MsiFormat, RouteTable};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};

fn vm() -> Result<VmFd, kvm_ioctls::Error> {
    let vm = Kvm::new()?.create_vm()?;
    for (cap, arg) in [(KVM_CAP_SPLIT_IRQCHIP, 24), (KVM_CAP_X2APIC_API, 3)] {
        let mut request = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        request.args[0] = arg;
        vm.enable_cap(&request)?;
    }
    Ok(vm)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut routes = RouteTable::new(MsiFormat::X2ApicApi, 24);
    for index in 0..2048_u32 {
        let gsi = routes.allocate().ok_or("KVM has no GSI left")?;
        let delivery = Delivery {
            dest: 256 + index / 128,
            dest_mode: DestMode::Physical,
            delivery_mode: DeliveryMode::Fixed,
            vector: 0x40 + (index % 128) as u8,
            trigger: Trigger::Edge,
            assert: false,
            redirection_hint: false,
            rq_eoi: false,
        };
        routes.set(gsi, Some(&delivery))?;
    }
    let last: KvmMessage = routes.get(24 + 2047).ok_or("the route was just set")?;
    println!(
        "last route: {last:x?} = {}",
        last.decode(MsiFormat::X2ApicApi)
    );
    match vm() {
        Ok(vm) => {
            let called = routes.commit(&vm)?;
            println!("committed: {called}, KVM calls: {}", routes.commits());
        }
        Err(error) => println!("not committed: /dev/kvm unusable: {error}"),
    }
    Ok(())
}
