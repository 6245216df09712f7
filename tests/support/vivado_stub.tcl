# A strict stand-in for the Vivado (and vitis_hls) commands that the project's scripts use.
#
#   tclsh vivado_stub.tcl vivado|vitis_hls SCRIPT
#
# It knows the library blocks of the block design with their properties, pins and interfaces as the vendor documents
# them, and stops at the first unknown command, option, property, value, pin or port, at a step out of order, at an input
# without driver and at two drivers on one net.  It builds nothing: reports and bitstream are placeholders.

proc fail {text} { error "stub: $text" }

# ---- state --------------------------------------------------------------------------------------------------------
array set stub_project {open 0 name "" directory "" part "" board_part "" repos {} catalog 0}
array set stub_core {open 0 checked 0}
array set stub_bd {checkpoints Hierarchical name "" validated 0 saved 0 addressed 0}
set stub_files {}
set stub_constraints {}
set stub_top ""
set stub_cells [dict create]     ;# name -> {kind .. properties ..}
set stub_nets [dict create]      ;# pin -> net number
set stub_drivers [dict create]   ;# net number -> driving pin
set stub_links [dict create]     ;# interface pin -> other interface pin
set stub_runs [dict create synth_1 {PROGRESS 0% STATUS "Not started"} impl_1 {PROGRESS 0% STATUS "Not started"}]
set stub_generated 0
set stub_opened ""
set stub_bitstream 0
set stub_packaged {}
set stub_mapped 1
set stub_interfaces {}           ;# of the packaged core: name {mode protocol}
set stub_reaching {}             ;# its masters with an address space
set stub_read {}                 ;# kinds of paths whose slack was read before the bitstream
# properties of a timing path (UG912)
set stub_path [dict create SLACK 0 STARTPOINT_PIN a_reg/C ENDPOINT_PIN b_reg/D LOGIC_LEVELS 12 DATAPATH_DELAY 6.9 \
    DATAPATH_LOGIC_DELAY 2.1 DATAPATH_NET_DELAY 4.8 REQUIREMENT 6.667 GROUP clk_out1]

# ---- option parsing -----------------------------------------------------------------------------------------------
# spec: option -> 1 if it takes a value.  Sets opt() and rest in the caller.
proc options {spec arguments} {
    upvar 1 opt opt rest rest
    array unset opt
    array set opt {}
    set rest {}
    set command [lindex [info level -1] 0]
    for {set i 0} {$i < [llength $arguments]} {incr i} {
        set word [lindex $arguments $i]
        if {[string match -* $word] && [regexp {^-[a-z_]} $word]} {
            if {![dict exists $spec $word]} { fail "$command has no option $word" }
            if {[dict get $spec $word]} {
                incr i
                if {$i >= [llength $arguments]} { fail "$command $word lacks its value" }
                set opt($word) [lindex $arguments $i]
            } else {
                set opt($word) 1
            }
        } else {
            lappend rest $word
        }
    }
}
proc arguments {count} {
    upvar 1 rest rest
    if {[llength $rest] != $count} {
        fail "[lindex [info level -1] 0] takes $count arguments, not [llength $rest]: $rest"
    }
}
proc need_project {} {
    if {!$::stub_project(open)} { fail "[lindex [info level -1] 0] before create_project" }
}
proc need_bd {} {
    if {$::stub_bd(name) eq ""} { fail "[lindex [info level -1] 0] before create_bd_design" }
}
proc touch {path {text ""}} {
    file mkdir [file dirname $path]
    set stream [open $path w]
    puts -nonewline $stream $text
    close $stream
}

# ---- catalogue of blocks ------------------------------------------------------------------------------------------
# property kinds: bool, int LOW HIGH, freq LOW HIGH, one-of WORDS
proc property_kinds {kind} {
    switch -- $kind {
        proc_sys_reset { return {C_EXT_RESET_HIGH {bool} C_AUX_RESET_HIGH {bool}} }
        clk_wiz {
            return {
                PRIM_SOURCE {words No_buffer Global_buffer Single_ended_clock_capable_pin}
                PRIM_IN_FREQ {freq 10 800} CLKOUT1_REQUESTED_OUT_FREQ {freq 10 800}
                RESET_TYPE {words ACTIVE_LOW ACTIVE_HIGH} RESET_PORT {words reset resetn} USE_RESET {words true false}
            }
        }
        processing_system7 {
            return {
                PCW_USE_M_AXI_GP0 {bool} PCW_USE_S_AXI_HP0 {bool} PCW_USE_S_AXI_HP1 {bool} PCW_USE_S_AXI_HP2 {bool}
                PCW_USE_S_AXI_HP3 {bool} PCW_S_AXI_HP3_DATA_WIDTH {words 32 64}
                PCW_S_AXI_HP0_DATA_WIDTH {words 32 64} PCW_S_AXI_HP1_DATA_WIDTH {words 32 64}
                PCW_S_AXI_HP2_DATA_WIDTH {words 32 64} PCW_USE_FABRIC_INTERRUPT {bool} PCW_IRQ_F2P_INTR {bool}
                PCW_FPGA0_PERIPHERAL_FREQMHZ {freq 0.1 250} PCW_EN_CLK0_PORT {bool} PCW_EN_RST0_PORT {bool}
            }
        }
        zynq_ultra_ps_e {
            return {
                PSU__USE__M_AXI_GP0 {bool} PSU__USE__M_AXI_GP1 {bool} PSU__USE__M_AXI_GP2 {bool}
                PSU__USE__S_AXI_GP2 {bool} PSU__USE__S_AXI_GP3 {bool} PSU__USE__S_AXI_GP4 {bool} PSU__USE__S_AXI_GP5 {bool}
                PSU__SAXIGP2__DATA_WIDTH {words 32 64 128} PSU__SAXIGP3__DATA_WIDTH {words 32 64 128}
                PSU__SAXIGP4__DATA_WIDTH {words 32 64 128} PSU__SAXIGP5__DATA_WIDTH {words 32 64 128} PSU__USE__IRQ0 {bool} PSU__FPGA_PL0_ENABLE {bool}
                PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ {freq 1 500} PSU__MAXIGP0__DATA_WIDTH {words 32 64 128}
            }
        }
        fabric { return {} }
    }
    fail "no block of kind $kind"
}
proc check_value {kind property value} {
    set rule [dict get [property_kinds $kind] $property]
    set low [lindex $rule 1]
    set high [lindex $rule 2]
    set good 0
    switch -- [lindex $rule 0] {
        bool { set good [expr {$value in {0 1}}] }
        int { set good [expr {[regexp {^\d+$} $value] && $value >= $low && $value <= $high}] }
        freq { set good [expr {[regexp {^\d+(\.\d+)?$} $value] && $value >= $low && $value <= $high}] }
        hex { set good [regexp {^0x[0-9A-Fa-f]{8}$} $value] }
        words { set good [expr {$value in [lrange $rule 1 end]}] }
    }
    if {!$good} { fail "CONFIG.$property of $kind cannot be '$value' ($rule)" }
}
proc setting {cell property default} {
    set properties [dict get $::stub_cells $cell properties]
    return [expr {[dict exists $properties $property] ? [dict get $properties $property] : $default}]
}
# scalar pins: name {direction class}; an input of class "optional" may stay open
proc pins_of {cell} {
    set kind [dict get $::stub_cells $cell kind]
    switch -- $kind {
        proc_sys_reset {
            return {
                slowest_sync_clk {I clk} ext_reset_in {I rst} aux_reset_in {I optional} mb_debug_sys_rst {I optional}
                dcm_locked {I optional} mb_reset {O rst} bus_struct_reset {O rst} peripheral_reset {O rst}
                interconnect_aresetn {O rst} peripheral_aresetn {O rst}
            }
        }
        clk_wiz { return [list clk_in1 {I clk} clk_out1 {O clk} locked {O data} [setting $cell RESET_PORT reset] {I rst}] }
        processing_system7 {
            set pins {FCLK_CLK0 {O clk} FCLK_RESET0_N {O rst}}
            if {[setting $cell PCW_USE_M_AXI_GP0 1]} { lappend pins M_AXI_GP0_ACLK {I clk} }
            foreach port {0 1 2 3} {
                if {[setting $cell PCW_USE_S_AXI_HP$port 0]} { lappend pins S_AXI_HP${port}_ACLK {I clk} }
            }
            if {[setting $cell PCW_USE_FABRIC_INTERRUPT 0] && [setting $cell PCW_IRQ_F2P_INTR 0]} { lappend pins IRQ_F2P {I irq} }
            return $pins
        }
        zynq_ultra_ps_e {
            set pins {pl_resetn0 {O rst}}
            if {[setting $cell PSU__FPGA_PL0_ENABLE 1]} { lappend pins pl_clk0 {O clk} }
            # the preset of the board enables both full-power masters
            foreach {gp pin} {0 maxihpm0_fpd_aclk 1 maxihpm1_fpd_aclk} {
                if {[setting $cell PSU__USE__M_AXI_GP$gp 1]} { lappend pins $pin {I clk} }
            }
            foreach {gp pin} {2 saxihp0_fpd_aclk 3 saxihp1_fpd_aclk 4 saxihp2_fpd_aclk 5 saxihp3_fpd_aclk} {
                if {[setting $cell PSU__USE__S_AXI_GP$gp 0]} { lappend pins $pin {I clk} }
            }
            if {[setting $cell PSU__USE__IRQ0 0]} { lappend pins pl_ps_irq0 {I irq} }
            return $pins
        }
        fabric { return {ap_clk {I clk} ap_rst_n {I rst} interrupt {O irq}} }
    }
}
# interfaces: name {mode protocol}; a protocol is told with its bits of data and of identifiers, which must agree where two
# interfaces meet without an interconnect between them
proc interfaces_of {cell} {
    set kind [dict get $::stub_cells $cell kind]
    set found {}
    switch -- $kind {
        processing_system7 {
            if {[setting $cell PCW_USE_M_AXI_GP0 1]} { lappend found M_AXI_GP0 {master AXI3/32/12} }
            foreach port {0 1 2 3} {
                set bits [setting $cell PCW_S_AXI_HP${port}_DATA_WIDTH 64]
                if {[setting $cell PCW_USE_S_AXI_HP$port 0]} { lappend found S_AXI_HP$port [list slave AXI3/$bits/6] }
            }
        }
        zynq_ultra_ps_e {
            foreach {gp name} {0 M_AXI_HPM0_FPD 1 M_AXI_HPM1_FPD} {
                set bits [setting $cell PSU__MAXIGP${gp}__DATA_WIDTH 128]
                if {[setting $cell PSU__USE__M_AXI_GP$gp 1]} { lappend found $name [list master AXI4/$bits/16] }
            }
            foreach {gp name} {2 S_AXI_HP0_FPD 3 S_AXI_HP1_FPD 4 S_AXI_HP2_FPD 5 S_AXI_HP3_FPD} {
                set bits [setting $cell PSU__SAXIGP${gp}__DATA_WIDTH 128]
                if {[setting $cell PSU__USE__S_AXI_GP$gp 0]} { lappend found $name [list slave AXI4/$bits/6] }
            }
        }
        fabric { set found $::stub_interfaces }
    }
    return $found
}

# ---- projects and files -------------------------------------------------------------------------------------------
proc create_project {args} {
    options {-force 0 -part 1 -in_memory 0} $args
    arguments 2
    if {$::stub_project(open)} { fail "create_project while project $::stub_project(name) is open" }
    if {![info exists opt(-part)]} { fail "create_project without -part" }
    if {$opt(-part) ni {xc7z045ffg900-2 xc7z020clg400-1 xczu7ev-ffvc1156-2-e}} { fail "no part $opt(-part)" }
    array set ::stub_project [list open 1 name [lindex $rest 0] directory [lindex $rest 1] part $opt(-part) board_part ""]
    file mkdir [lindex $rest 1]
    set ::stub_files {}
    set ::stub_top ""
}
proc close_project {args} {
    need_project
    options {} $args
    arguments 0
    if {$::stub_core(open) && !$::stub_core(checked)} { fail "close_project with an unsaved core" }
    array set ::stub_core {open 0 checked 0}
    set ::stub_project(open) 0
}
proc current_project {args} { need_project; options {-quiet 0} $args; arguments 0; return project_1 }
proc current_fileset {args} { need_project; options {-constrset 0 -simset 0} $args; arguments 0; return sources_1 }
proc get_board_parts {args} {
    options {-quiet 0} $args
    arguments 1
    set known {
        xilinx.com:zc706:part0:1.3 xilinx.com:zc706:part0:1.4 tul.com.tw:pynq-z2:part0:1.0 xilinx.com:zcu104:part0:1.1
    }
    return [lsearch -all -inline -glob $known [lindex $rest 0]]
}
proc add_files {args} {
    if {$::stub_tool eq "vitis_hls"} { return [hls_add_files {*}$args] }
    need_project
    options {-norecurse 0 -fileset 1} $args
    arguments 1
    foreach name [lindex $rest 0] {
        if {![file exists $name]} { fail "add_files: $name does not exist" }
        if {[info exists opt(-fileset)]} {
            if {$opt(-fileset) ni {constrs_1 sim_1 sources_1}} { fail "no fileset $opt(-fileset)" }
            lappend ::stub_constraints $name
        } else {
            lappend ::stub_files $name
        }
    }
    return [lindex $rest 0]
}
proc update_compile_order {args} {
    need_project
    options {-fileset 1} $args
    arguments 0
    if {[llength $::stub_files] == 0} { fail "update_compile_order without sources" }
}
proc set_property {args} {
    set pairs {}
    if {[lindex $args 0] eq "-dict"} {
        if {[llength $args] != 3} { fail "set_property -dict takes a list and an object" }
        set pairs [lindex $args 1]
        if {[llength $pairs] % 2} { fail "set_property -dict with an odd list: $pairs" }
        set object [lindex $args 2]
    } else {
        if {[llength $args] != 3} { fail "set_property takes a name, a value and an object, not [llength $args] words: $args" }
        set pairs [lrange $args 0 1]
        set object [lindex $args 2]
    }
    foreach {name value} $pairs { set_one_property $name $value $object }
}
proc set_one_property {name value object} {
    need_project
    if {[dict exists $::stub_cells $object]} {
        if {![regexp {^CONFIG\.(.+)$} $name -> property]} { fail "cell $object has no property $name" }
        set kind [dict get $::stub_cells $object kind]
        if {![dict exists [property_kinds $kind] $property]} { fail "block $kind has no property CONFIG.$property" }
        check_value $kind $property $value
        foreach pin [dict keys $::stub_nets $object/*] { fail "$object is configured after its pin $pin was connected" }
        dict set ::stub_cells $object properties $property $value
    } elseif {$object eq "project_1"} {
        switch -- $name {
            board_part {
                if {[llength [get_board_parts $value]] != 1} { fail "no board part $value" }
                set ::stub_project(board_part) $value
            }
            ip_repo_paths {
                foreach folder $value {
                    if {![file isdirectory $folder]} { fail "no folder $folder for the block catalogue" }
                }
                set ::stub_project(repos) $value
                set ::stub_project(catalog) 0
            }
            default { fail "a project has no property $name" }
        }
    } elseif {$object eq "sources_1"} {
        if {$name ne "top"} { fail "a fileset has no property $name" }
        if {$value ni {fabric fabric_top fabric_system_wrapper}} { fail "no module $value to be the top" }
        if {[llength $::stub_files] == 0} { fail "top is set before sources are added" }
        set ::stub_top $value
    } elseif {$object eq "core_1"} {
        if {!$::stub_core(open)} { fail "property $name of a core that is not open" }
        if {$name ni {name version display_name description core_revision}} { fail "a core has no property $name" }
        if {$value eq ""} { fail "core property $name is empty" }
        if {$name in {name version}} { set ::stub_core($name) $value }
    } elseif {$object eq "registers_of_core"} {
        if {$name ni {usage range width}} { fail "an address block has no property $name" }
        dict set ::stub_core(block) $name $value
    } elseif {[regexp {^space:(.+)$} $object - space]} {
        if {$name ni {range width}} { fail "an address space has no property $name" }
        dict set ::stub_core(spaces) $space $name $value
    } elseif {[regexp {^interface:(m_axi_.)$} $object - master]} {
        if {$name ne "master_address_space_ref"} { fail "a master has no property $name" }
        if {![dict exists $::stub_core(spaces) $value range]} { fail "no address space $value with a range" }
        lappend ::stub_reaching $master
    } elseif {$object eq "interface:s_axi_control"} {
        if {$name ne "slave_memory_map_ref"} { fail "an interface has no property $name" }
        if {$value ne $::stub_core(map)} { fail "no memory map $value" }
        set ::stub_core(referred) 1
    } elseif {$::stub_bd(name) ne "" && $object eq "$::stub_bd(name).bd"} {
        if {$name ne "synth_checkpoint_mode"} { fail "a block design has no property $name" }
        if {$value ni {None Singular Hierarchical}} { fail "synth_checkpoint_mode cannot be '$value'" }
        if {$::stub_generated} { fail "synth_checkpoint_mode is set after generate_target" }
        set ::stub_bd(checkpoints) $value
    } elseif {[dict exists $::stub_runs $object]} {
        if {[regexp {^STEPS\.SYNTH_DESIGN\.ARGS\.(.*)$} $name - option]} {
            # options of UG901 that the scripts use, and what they take
            set known {KEEP_EQUIVALENT_REGISTERS {^(true|false)$} FANOUT_LIMIT {^[1-9][0-9]*$}}
            if {$object ne "synth_1" || ![dict exists $known $option]} { fail "$object has no option $option" }
            if {![regexp [dict get $known $option] $value]} { fail "$option cannot be $value" }
            set ::stub_options($object) 1
            return
        }
        if {$name ne "strategy"} { fail "a run has no property $name" }
        if {[info exists ::stub_options($object)]} { fail "a strategy sets the options of $object anew, which were set before it" }
        set known {
            synth_1 {"Vivado Synthesis Defaults" Flow_PerfOptimized_high Flow_AreaOptimized_high}
            impl_1 {
                "Vivado Implementation Defaults" Performance_Explore Performance_ExplorePostRoutePhysOpt
                Congestion_SpreadLogic_high
            }
        }
        if {$object eq "synth_1" && $value ne "Vivado Synthesis Defaults" && $::stub_bd(checkpoints) ne "None"} {
            fail "a strategy of synth_1 reaches the wrapper alone while the blocks have runs of their own"
        }
        if {$value ni [dict get $known $object]} { fail "$object has no strategy $value" }
    } else {
        fail "set_property $name: no object '$object'"
    }
}
proc get_property {args} {
    options {} $args
    arguments 2
    lassign $rest name object
    if {[regexp {^timing_path_(setup|hold)$} $object - kind]} {
        if {![dict exists $::stub_path $name]} { fail "a timing path has no property $name" }
        set slacks [list setup 0.104 hold 0.021]
        if {[info exists ::env(STUB_SLACK)]} { set slacks [dict merge $slacks $::env(STUB_SLACK)] }
        return [expr {$name eq "SLACK" ? [dict get $slacks $kind] : [dict get $::stub_path $name]}]
    }
    if {![dict exists $::stub_runs $object]} { fail "get_property $name: no object '$object'" }
    if {$name eq "DIRECTORY"} { return [file join $::stub_project(directory) $object] }
    if {$name ni {PROGRESS STATUS}} { fail "a run has no property $name" }
    return [dict get $::stub_runs $object $name]
}

# ---- packaging ----------------------------------------------------------------------------------------------------
namespace eval ipx {}
proc ipx::package_project {args} {
    need_project
    options {-root_dir 1 -vendor 1 -library 1 -taxonomy 1 -import_files 0 -force 0} $args
    arguments 0
    foreach name {-root_dir -vendor -library} {
        if {![info exists opt($name)]} { fail "ipx::package_project without $name" }
    }
    if {$::stub_top eq ""} { fail "ipx::package_project before top is set" }
    if {[llength [lsearch -all -glob $::stub_files *fabric_pkg.sv]] != 1} { fail "the package fabric_pkg.sv is not among the sources" }
    if {[file tail [lindex $::stub_files 0]] ne "fabric_pkg.sv"} { fail "fabric_pkg.sv must come first, other files import it" }
    if {[lsearch -regexp $::stub_files {/fabric\.s?v$}] < 0} { fail "no source holds the module fabric" }
    set top [lsearch -inline -regexp $::stub_files "/$::stub_top\\.(s?v|vhdl?)\$"]
    if {$top eq ""} { fail "no source holds the top $::stub_top" }
    if {[file extension $top] eq ".sv"} { fail "the packager takes no SystemVerilog top ($top): write a wrapper in Verilog" }
    array set ::stub_core [list open 1 checked 0 sums 0 root $opt(-root_dir) vendor $opt(-vendor) library $opt(-library) \
        name $::stub_top version 1.0 interfaces [attributes $top] spaces {} map "" block {} referred 0]
}
# Interfaces that the attributes of a Verilog top name; a port without one belongs to none.
proc ipx::attributes {path} {
    set stream [open $path]
    set text [read $stream]
    close $stream
    set found [dict create]
    foreach {- vlnv name port} [regexp -all -inline {X_INTERFACE_INFO = "(\S+) (\S+) (\S+)"} $text] {
        if {![regexp {^xilinx\.com:(signal:(clock|reset|interrupt)|interface:aximm):1\.0$} $vlnv]} { fail "no interface $vlnv" }
        dict lappend found $name $port
    }
    regsub -all {\(\*.*?\*\)} $text "" plain
    set ports [regexp -all -inline -line {^\s*(?:input|output)\s.*?(\w+),?$} $plain]
    set count [regexp -all {X_INTERFACE_INFO} $text]
    if {[llength $ports] != 2 * $count} { fail "[expr {[llength $ports] / 2}] ports and $count X_INTERFACE_INFO in $path" }
    if {![regexp {ASSOCIATED_BUSIF ([\w:]+), ASSOCIATED_RESET ap_rst_n} $text - busses]} { fail "the clock has no interfaces" }
    if {![regexp {POLARITY ACTIVE_LOW} $text]} { fail "the reset's polarity is not told" }
    set ::stub_interfaces {}
    foreach {name ports} $found {
        if {$name in {ap_clk ap_rst_n interrupt}} continue
        if {$name ni [split $busses :]} { fail "interface $name has no clock" }
        if {[lsort -unique $ports] ne [lsort $ports]} { fail "interface $name has a signal twice: $ports" }
        set pattern "XIL_INTERFACENAME $name, PROTOCOL (AXI3|AXI4|AXI4LITE), ADDR_WIDTH \\d+, DATA_WIDTH (\\d+), ID_WIDTH (\\d+)"
        if {![regexp $pattern $text - protocol bits ids]} { fail "interface $name does not tell its protocol" }
        foreach {signal size} [list ARLEN [dict get {AXI3 4 AXI4 8} $protocol] RDATA $bits WDATA $bits ARID $ids BID $ids] {
            set range [expr {$size > 1 ? [format {\[%d:0\] +} [expr {$size - 1}]] : ""}]
            if {![regexp -line "wire +$range${name}_$signal,$" $plain]} { fail "${name}_$signal is not as wide as $protocol says" }
        }
        set mode [expr {[regexp -line "^ *input +wire +${name}_ARVALID,$" $plain] ? "slave" : "master"}]
        lappend ::stub_interfaces $name [list $mode $protocol/$bits/$ids]
    }
    return $found
}
proc ipx::get_bus_interfaces {args} {
    options {-quiet 0 -of_objects 1} $args
    arguments 1
    if {$opt(-of_objects) ne "core_1"} { fail "no core $opt(-of_objects)" }
    set name [lindex $rest 0]
    if {[dict exists $::stub_core(interfaces) $name]} { return interface:$name }
    return {}
}
proc ipx::add_memory_map {args} { options {} $args; arguments 2; set ::stub_core(map) [lindex $rest 0] }
proc ipx::get_memory_maps {args} {
    options {-quiet 0 -of_objects 1} $args
    arguments 1
    return [expr {$::stub_core(map) eq [lindex $rest 0] ? "map_of_core" : ""}]
}
proc ipx::add_address_block {args} {
    options {} $args
    arguments 2
    if {[lindex $rest 1] ne "map_of_core"} { fail "no memory map [lindex $rest 1]" }
    dict set ::stub_core(block) name [lindex $rest 0]
}
proc ipx::get_address_blocks {args} {
    options {-quiet 0 -of_objects 1} $args
    arguments 0
    return [expr {[dict exists $::stub_core(block) name] ? "registers_of_core" : ""}]
}
proc ipx::add_address_space {args} { options {} $args; arguments 2; dict set ::stub_core(spaces) [lindex $rest 0] {} }
proc ipx::get_address_spaces {args} {
    options {-quiet 0 -of_objects 1} $args
    arguments 1
    return [expr {[dict exists $::stub_core(spaces) [lindex $rest 0]] ? "space:[lindex $rest 0]" : ""}]
}
proc ipx::current_core {args} {
    if {!$::stub_core(open)} { fail "ipx::current_core without a core" }
    return core_1
}
proc ipx::update_checksums {args} { options {} $args; arguments 1; set ::stub_core(sums) 1 }
proc ipx::check_integrity {args} {
    options {-quiet 0} $args
    arguments 1
    if {!$::stub_core(sums)} { fail "ipx::check_integrity before ipx::update_checksums" }
    set ::stub_core(checked) 1
    # without a memory map the vendor's check warns only, and the block gets no address
    set ::stub_core(mapped) [expr {$::stub_core(referred) && [dict exists $::stub_core(block) range]}]
    return 1
}
proc ipx::save_core {args} {
    options {} $args
    arguments 1
    if {!$::stub_core(checked)} { fail "ipx::save_core before ipx::check_integrity" }
    set ::stub_mapped $::stub_core(mapped)
    lappend ::stub_packaged $::stub_core(vendor):$::stub_core(library):$::stub_core(name):$::stub_core(version)
    touch [file join $::stub_core(root) component.xml]
}

# ---- block design ---------------------------------------------------------------------------------------------------
proc update_ip_catalog {args} {
    need_project
    options {-rebuild 0 -quiet 0} $args
    arguments 0
    set ::stub_project(catalog) 1
}
proc catalogue {} {
    set versions { proc_sys_reset 5.0 clk_wiz 6.0 processing_system7 5.5 zynq_ultra_ps_e 3.4 }
    set found {}
    foreach {name version} $versions { lappend found xilinx.com:ip:$name:$version }
    if {$::stub_project(catalog)} {
        lappend found {*}$::stub_packaged
    }
    return $found
}
proc get_ipdefs {args} {
    need_project
    options {-all 0 -quiet 0} $args
    arguments 1
    return [lsearch -all -inline -glob [catalogue] [lindex $rest 0]]
}
proc create_bd_design {args} {
    need_project
    options {} $args
    arguments 1
    if {$::stub_project(board_part) eq ""} { fail "create_bd_design before board_part is set" }
    set ::stub_bd(name) [lindex $rest 0]
}
proc create_bd_cell {args} {
    need_bd
    options {-type 1 -vlnv 1} $args
    arguments 1
    if {![info exists opt(-vlnv)] || $opt(-type) ne "ip"} { fail "create_bd_cell needs -type ip and -vlnv" }
    if {$opt(-vlnv) ni [catalogue]} { fail "no block $opt(-vlnv) in the catalogue" }
    set name [lindex $rest 0]
    if {[dict exists $::stub_cells $name]} { fail "cell $name exists already" }
    dict set ::stub_cells $name [list kind [lindex [split $opt(-vlnv) :] 2] properties {} preset 0]
    return $name
}
proc apply_bd_automation {args} {
    need_bd
    options {-rule 1 -config 1} $args
    arguments 1
    set cell [lindex $rest 0]
    if {![dict exists $::stub_cells $cell]} { fail "no cell $cell" }
    if {$opt(-rule) ne "xilinx.com:bd_rule:[dict get $::stub_cells $cell kind]"} { fail "no rule $opt(-rule) for $cell" }
    if {[llength $opt(-config)] % 2} { fail "odd configuration $opt(-config)" }
    foreach {name value} $opt(-config) {
        if {$name ni {make_external apply_board_preset Master Slave}} { fail "rule has no setting $name" }
    }
    if {[dict size [dict get $::stub_cells $cell properties]]} { fail "the board preset would overwrite settings of $cell" }
    dict set ::stub_cells $cell preset 1
}
proc get_bd_pins {args} {
    need_bd
    options {-quiet 0} $args
    arguments 1
    set pin [lindex $rest 0]
    lassign [split [string trimleft $pin /] /] cell name
    if {![dict exists $::stub_cells $cell]} { fail "no cell $cell" }
    if {![dict exists [pins_of $cell] $name]} { fail "cell $cell ([dict get $::stub_cells $cell kind]) has no pin $name" }
    return $cell/$name
}
proc get_bd_intf_pins {args} {
    need_bd
    options {-quiet 0} $args
    arguments 1
    lassign [split [string trimleft [lindex $rest 0] /] /] cell name
    if {![dict exists $::stub_cells $cell]} { fail "no cell $cell" }
    if {![dict exists [interfaces_of $cell] $name]} { fail "cell $cell ([dict get $::stub_cells $cell kind]) has no interface $name" }
    return $cell/$name
}
proc connect_bd_net {args} {
    need_bd
    if {[llength $args] < 2} { fail "connect_bd_net needs two pins" }
    set classes {}
    set net ""
    foreach pin $args {
        if {[dict exists $::stub_nets $pin]} { set net [dict get $::stub_nets $pin] }
    }
    if {$net eq ""} { set net [dict size $::stub_nets] }
    foreach pin $args {
        lassign [split $pin /] cell name
        lassign [dict get [pins_of $cell] $name] direction class
        if {$class in {clk irq}} { lappend classes $class }
        if {$direction eq "O"} {
            if {[dict exists $::stub_drivers $net] && [dict get $::stub_drivers $net] ne $pin} {
                fail "$pin and [dict get $::stub_drivers $net] drive one net"
            }
            dict set ::stub_drivers $net $pin
        } elseif {[dict exists $::stub_nets $pin] && [dict get $::stub_nets $pin] != $net} {
            fail "$pin is connected to another net already"
        }
        dict set ::stub_nets $pin $net
    }
    if {![dict exists $::stub_drivers $net]} { fail "no driver among $args" }
    if {[llength [lsort -unique $classes]] > 1} { fail "a clock and an interrupt on one net: $args" }
    lassign [split [dict get $::stub_drivers $net] /] cell name
    set class [lindex [dict get [pins_of $cell] $name] 1]
    foreach pin $args {
        lassign [split $pin /] cell name
        set wanted [lindex [dict get [pins_of $cell] $name] 1]
        if {$wanted in {clk rst} && $class ne $wanted} { fail "$pin wants $wanted and [dict get $::stub_drivers $net] gives $class" }
    }
}
proc connect_bd_intf_net {args} {
    need_bd
    if {[llength $args] != 2} { fail "connect_bd_intf_net takes two interfaces" }
    set modes {}
    set protocols {}
    foreach pin $args {
        if {[dict exists $::stub_links $pin]} { fail "$pin is connected already" }
        lassign [split $pin /] cell name
        lassign [dict get [interfaces_of $cell] $name] mode protocol
        lappend modes $mode
        lappend protocols $protocol
    }
    if {[lsort $modes] ne {master slave}} { fail "$args: one must be master and one slave, not $modes" }
    if {[lindex $protocols 0] ne [lindex $protocols 1]} { fail "$args: protocol, bits of data or of identifiers differ: $protocols" }
    lassign $args a b
    dict set ::stub_links $a $b
    dict set ::stub_links $b $a
}
proc assign_bd_address {args} {
    need_bd
    options {} $args
    arguments 0
    if {[dict size $::stub_links] == 0} { fail "assign_bd_address before interfaces are connected" }
    set ::stub_bd(addressed) 1
}
proc get_bd_addr_spaces {args} {
    need_bd
    options {-quiet 0} $args
    arguments 1
    set space [lindex $rest 0]
    if {$space ne "ps/Data" && [regsub {^fabric/} $space ""] ni $::stub_reaching} { fail "no address space $space" }
    return $space
}
proc get_bd_addr_segs {args} {
    need_bd
    options {-quiet 0 -of_objects 1} $args
    arguments 0
    set space $opt(-of_objects)
    if {!$::stub_bd(addressed)} { return {} }
    if {$space eq "ps/Data"} {
        return [expr {$::stub_mapped && [dict exists $::stub_links fabric/s_axi_control] ? "/ps/Data/SEG_fabric_registers" : ""}]
    }
    if {![dict exists $::stub_links $space]} { return {} }
    # the processor's port of memory that the master is connected to
    regexp {HP\d} [dict get $::stub_links $space] port
    return /$space/SEG_ps_${port}_DDR_LOWOCM
}
proc validate_bd_design {args} {
    need_bd
    options {-force 0} $args
    arguments 0
    if {!$::stub_bd(addressed)} { fail "validate_bd_design before assign_bd_address" }
    dict for {cell what} $::stub_cells {
        if {[dict get $what kind] in {processing_system7 zynq_ultra_ps_e} && ![dict get $what preset]} {
            fail "$cell has no board preset"
        }
        foreach {pin about} [pins_of $cell] {
            lassign $about direction class
            if {$direction eq "I" && $class ne "optional" && ![dict exists $::stub_nets $cell/$pin]} { fail "$cell/$pin is not connected" }
        }
        foreach {name about} [interfaces_of $cell] {
            if {![dict exists $::stub_links $cell/$name]} { fail "$cell/$name is not connected" }
        }
    }
    set ::stub_bd(validated) 1
}
proc save_bd_design {args} {
    need_bd
    options {} $args
    arguments 0
    if {!$::stub_bd(validated)} { fail "save_bd_design before validate_bd_design" }
    set ::stub_bd(saved) 1
}

# ---- implementation -------------------------------------------------------------------------------------------------
proc get_files {args} {
    need_project
    options {-quiet 0} $args
    arguments 1
    if {!$::stub_bd(saved) || [lindex $rest 0] ne "$::stub_bd(name).bd"} { fail "no file [lindex $rest 0] in the project" }
    return $::stub_bd(name).bd
}
proc generate_target {args} {
    options {-force 0} $args
    arguments 2
    if {[lindex $rest 0] ne "all" || [lindex $rest 1] ne "$::stub_bd(name).bd"} { fail "generate_target $rest" }
    set base [file join $::stub_project(directory) $::stub_project(name).gen sources_1 bd $::stub_bd(name)]
    touch [file join $base hw_handoff $::stub_bd(name).hwh] "<EDKSYSTEM/>\n"
    set ::stub_generated 1
}
proc make_wrapper {args} {
    options {-files 1 -top 0 -import 0 -force 0} $args
    arguments 0
    if {!$::stub_generated} { fail "make_wrapper before generate_target" }
    if {$opt(-files) ne "$::stub_bd(name).bd"} { fail "make_wrapper of $opt(-files)" }
    set path [file join $::stub_project(directory) $::stub_project(name).gen sources_1 bd $::stub_bd(name) hdl $::stub_bd(name)_wrapper.v]
    touch $path
    return $path
}
proc get_runs {args} {
    need_project
    options {-quiet 0} $args
    arguments 1
    if {![dict exists $::stub_runs [lindex $rest 0]]} { fail "no run [lindex $rest 0]" }
    return [lindex $rest 0]
}
proc launch_runs {args} {
    need_project
    options {-jobs 1 -to_step 1} $args
    arguments 1
    set run [lindex $rest 0]
    if {![dict exists $::stub_runs $run]} { fail "no run $run" }
    if {$::stub_top ne "fabric_system_wrapper"} { fail "launch_runs with top '$::stub_top'" }
    if {[info exists opt(-jobs)] && (![string is integer -strict $opt(-jobs)] || $opt(-jobs) < 1)} { fail "jobs $opt(-jobs)" }
    if {$run eq "impl_1"} {
        if {[dict get $::stub_runs synth_1 PROGRESS] ne "100%"} { fail "launch_runs impl_1 before synth_1 is finished" }
        if {$::stub_opened ne ""} { fail "launch_runs impl_1 while a design is open" }
        set ::stub_last "route_design"
        if {[info exists opt(-to_step)]} {
            if {$opt(-to_step) ne "write_bitstream"} { fail "no step $opt(-to_step)" }
            foreach kind {setup hold} {
                if {$kind ni $::stub_read} { fail "write_bitstream before the slack of $kind was read" }
            }
            set ::stub_last write_bitstream
        }
        if {[llength $::stub_constraints] == 0} { fail "launch_runs impl_1 without constraints" }
    }
    dict set ::stub_runs $run STATUS launched
}
proc wait_on_run {args} {
    options {-timeout 1} $args
    arguments 1
    set run [lindex $rest 0]
    if {![dict exists $::stub_runs $run]} { fail "no run $run" }
    if {[dict get $::stub_runs $run STATUS] ne "launched"} { fail "wait_on_run $run before launch_runs" }
    if {[info exists ::env(STUB_FAILED_RUN)] && $::env(STUB_FAILED_RUN) eq $run} {
        dict set ::stub_runs $run {PROGRESS 40% STATUS "route_design ERROR"}
    } else {
        dict set ::stub_runs $run {PROGRESS 100% STATUS "Complete!"}
        if {$run eq "impl_1" && $::stub_last eq "write_bitstream"} {
            touch [file join $::stub_project(directory) impl_1 fabric_system_wrapper.bit] "placeholder bitstream\n"
            set ::stub_bitstream 1
        }
    }
}
proc open_run {args} {
    options {-name 1} $args
    arguments 1
    if {[dict get $::stub_runs [get_runs [lindex $rest 0]] PROGRESS] ne "100%"} { fail "open_run [lindex $rest 0] before it is finished" }
    set ::stub_opened [lindex $rest 0]
}
proc need_open_run {} {
    if {$::stub_opened ne "impl_1"} { fail "[lindex [info level -1] 0] before open_run impl_1" }
}
proc report {name spec arguments} {
    options [dict merge {-file 1} $spec] $arguments
    arguments 0
    if {![info exists opt(-file)]} { fail "$name without -file" }
    set source [file join $::stub_reports $name.rpt]
    set text "placeholder\n"
    if {[file exists $source]} {
        set stream [open $source]
        set text [read $stream]
        close $stream
    }
    touch $opt(-file) $text
}
proc close_design {args} {
    need_open_run
    options {-quiet 0} $args
    arguments 0
    set ::stub_opened ""
}
proc get_timing_paths {args} {
    need_open_run
    options {-setup 0 -hold 0 -max_paths 1 -nworst 1 -slack_lesser_than 1 -quiet 0} $args
    arguments 0
    if {[info exists opt(-setup)] == [info exists opt(-hold)]} { fail "get_timing_paths takes one of -setup and -hold" }
    set kind [expr {[info exists opt(-setup)] ? "setup" : "hold"}]
    lappend ::stub_read $kind
    return [list timing_path_$kind]
}
proc report_timing_summary {args} { need_open_run; report timing {-max_paths 1 -delay_type 1} $args }
proc report_utilization {args} { need_open_run; report utilization {-hierarchical 0 -hierarchical_depth 1} $args }
proc report_power {args} { need_open_run; report power {} $args }
proc report_drc {args} { need_open_run; report drc {} $args }
proc write_hw_platform {args} {
    need_open_run
    options {-fixed 0 -include_bit 0 -force 0 -file 1} $args
    arguments 0
    if {!$::stub_bitstream} { fail "write_hw_platform before write_bitstream" }
    touch $opt(-file)
}

# ---- vitis_hls ------------------------------------------------------------------------------------------------------
array set stub_hls {project "" top "" solution "" part "" clock "" synthesised 0}
proc hls_commands {} {
    proc open_project {args} { options {-reset 0} $args; arguments 1; set ::stub_hls(project) [lindex $rest 0] }
    proc hls_add_files {args} {
        options {-tb 0 -cflags 1 -csimflags 1} $args
        arguments 1
        if {$::stub_hls(project) eq ""} { fail "add_files before open_project" }
        if {![file exists [lindex $rest 0]]} { fail "add_files: [lindex $rest 0] does not exist" }
    }
    proc set_top {name} {
        if {$::stub_hls(project) eq ""} { fail "set_top before open_project" }
        if {$name ne "fabric"} { fail "no function $name" }
        set ::stub_hls(top) $name
    }
    proc open_solution {args} {
        options {-reset 0 -flow_target 1} $args
        arguments 1
        if {$::stub_hls(top) eq ""} { fail "open_solution before set_top" }
        if {$opt(-flow_target) ni {vivado vitis}} { fail "no flow target $opt(-flow_target)" }
        set ::stub_hls(solution) [lindex $rest 0]
    }
    proc set_part {args} {
        options {} $args
        arguments 1
        if {$::stub_hls(solution) eq ""} { fail "set_part before open_solution" }
        set ::stub_hls(part) [lindex $rest 0]
    }
    proc create_clock {args} {
        options {-period 1 -name 1} $args
        arguments 0
        if {$::stub_hls(solution) eq ""} { fail "create_clock before open_solution" }
        if {![string is double -strict $opt(-period)]} { fail "period $opt(-period)" }
        set ::stub_hls(clock) $opt(-period)
    }
    proc csynth_design {args} {
        options {} $args
        arguments 0
        if {$::stub_hls(part) eq "" || $::stub_hls(clock) eq ""} { fail "csynth_design before set_part and create_clock" }
        set ::stub_hls(synthesised) 1
    }
    proc csim_design {args} {
        options {-argv 1 -O 0 -clean 0 -ldflags 1 -mflags 1 -profile 0 -setup 0} $args
        arguments 0
        if {$::stub_hls(solution) eq ""} { fail "csim_design before open_solution" }
    }
    proc export_design {args} {
        options {-format 1 -vendor 1 -library 1 -version 1 -output 1 -rtl 1} $args
        arguments 0
        if {!$::stub_hls(synthesised)} { fail "export_design before csynth_design" }
        if {$opt(-format) ne "ip_catalog"} { fail "format $opt(-format)" }
        set ::stub_hls(exported) 1
    }
}

# ---- run --------------------------------------------------------------------------------------------------------------
lassign $argv stub_tool stub_script stub_reports
if {$stub_tool eq "vitis_hls"} {
    foreach stub_name [info procs] {
        if {$stub_name in {create_project set_property close_project launch_runs}} { rename $stub_name {} }
    }
    hls_commands
}
# what a shell would otherwise look up as a program is a spelling mistake here
proc unknown {args} { fail "unknown command [lindex $args 0]" }
rename exec {}
rename exit stub_exit
proc exit {{code 0}} {
    if {$code != 0} { puts stderr "stub: the script gave up with status $code" }
    stub_exit $code
}
if {[catch {source $stub_script} stub_message]} {
    puts stderr $stub_message
    puts stderr $::errorInfo
    stub_exit 1
}
puts "stub: $stub_script ended well"
stub_exit 0
