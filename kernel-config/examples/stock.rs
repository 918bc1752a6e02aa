//! Where the stock kernel is: `cargo run -p undercroft-kernel-config --example stock`.

fn main() -> Result<(), undercroft_kernel_config::Error> {
    println!("{:#?}", undercroft_kernel_config::stock()?);
    Ok(())
}
