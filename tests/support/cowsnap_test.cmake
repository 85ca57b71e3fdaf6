# SPDX-License-Identifier: MIT
# How a test program is built and registered.
#
#   cowsnap_test(NAME SOURCES file... [LABELS label...] [MIN n] [TIMEOUT s] [LIBS target...])
#
# One program and one CTest test "NAME" per module. MIN is the number of cases that must have run
# (default 1). Labels: "concurrent" is what ThreadSanitizer runs; the others are for choosing by
# hand. In a TSan build only the concurrent ones exist.

cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH cowsnap_tests_dir)
set(cowsnap_check_run ${CMAKE_CURRENT_LIST_DIR}/check_run.sh)

# A sanitizer makes the same work three to ten times slower.
if(COWSNAP_SANITIZE)
	set(cowsnap_timeout_factor 4)
else()
	set(cowsnap_timeout_factor 1)
endif()

set(cowsnap_test_environment
	"ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:detect_stack_use_after_return=1"
	"UBSAN_OPTIONS=print_stacktrace=1"
	"TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1")

if(COWSNAP_TEST_STANDIN)
	add_library(cowsnap_test_frame OBJECT ${CMAKE_CURRENT_LIST_DIR}/standin.c)
	target_compile_definitions(cowsnap_test_frame PUBLIC CS_TEST_STANDIN)
	target_include_directories(cowsnap_test_frame PUBLIC ${cowsnap_tests_dir})
	target_link_libraries(cowsnap_test_frame PRIVATE cowsnap_flags)
	set(cowsnap_test_arguments "")
else()
	pkg_check_modules(CRITERION REQUIRED IMPORTED_TARGET criterion)
	add_library(cowsnap_test_frame INTERFACE)
	target_include_directories(cowsnap_test_frame INTERFACE ${cowsnap_tests_dir})
	target_link_libraries(cowsnap_test_frame INTERFACE PkgConfig::CRITERION)
	set(cowsnap_test_arguments -j1)
endif()

# Builds the program; the negative controls use it too, so that they are built as tests are.
function(cowsnap_test_program name)
	cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBS")
	add_executable(${name} ${arg_SOURCES})
	target_link_libraries(${name} PRIVATE
		cowsnap_flags
		cowsnap_test_frame
		cowsnap_testing
		${arg_LIBS})
endfunction()

function(cowsnap_test name)
	cmake_parse_arguments(PARSE_ARGV 1 arg "" "MIN;TIMEOUT" "SOURCES;LABELS;LIBS")
	if(arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES)
		message(FATAL_ERROR "cowsnap_test(${name}): ${arg_UNPARSED_ARGUMENTS}")
	endif()
	if(COWSNAP_SANITIZE STREQUAL "thread" AND NOT "concurrent" IN_LIST arg_LABELS)
		return()
	endif()
	if(NOT arg_MIN)
		set(arg_MIN 1)
	endif()
	if(NOT arg_TIMEOUT)
		set(arg_TIMEOUT 60)
	endif()
	math(EXPR timeout "${arg_TIMEOUT} * ${cowsnap_timeout_factor}")
	cowsnap_test_program(test_${name} SOURCES ${arg_SOURCES} LIBS ${arg_LIBS})
	add_test(NAME ${name}
		COMMAND ${cowsnap_check_run} ${arg_MIN}
			$<TARGET_FILE:test_${name}> ${cowsnap_test_arguments})
	set_tests_properties(${name} PROPERTIES
		TIMEOUT ${timeout}
		LABELS "${arg_LABELS}"
		ENVIRONMENT "${cowsnap_test_environment}")
endfunction()
