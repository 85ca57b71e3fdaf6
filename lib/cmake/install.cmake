# SPDX-License-Identifier: MIT
# What is installed, and how others find it: a pkg-config file and a CMake package.

include(CMakePackageConfigHelpers)

set(cowsnap_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/cowsnap)
set(cowsnap_pc_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(FILES ${PROJECT_SOURCE_DIR}/include/cowsnap.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/cowsnap
	DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
	FILES_MATCHING PATTERN "*.h")
install(TARGETS cowsnap EXPORT cowsnapTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT cowsnapTargets NAMESPACE cowsnap:: DESTINATION ${cowsnap_package_dir})

# Relative to the .pc file, so that the installed tree can be moved.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
	BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX}/${cowsnap_pc_dir}
	OUTPUT_VARIABLE cowsnap_pc_prefix)
foreach(dir includedir libdir)
	string(TOUPPER CMAKE_INSTALL_${dir} variable)
	if(IS_ABSOLUTE "${${variable}}")
		set(cowsnap_pc_${dir} "${${variable}}")
	else()
		set(cowsnap_pc_${dir} "\${prefix}/${${variable}}")
	endif()
endforeach()
configure_file(cmake/cowsnap.pc.in cowsnap.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cowsnap.pc DESTINATION ${cowsnap_pc_dir})

configure_package_config_file(cmake/cowsnapConfig.cmake.in cowsnapConfig.cmake
	INSTALL_DESTINATION ${cowsnap_package_dir})
write_basic_package_version_file(cowsnapConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
	${CMAKE_CURRENT_BINARY_DIR}/cowsnapConfig.cmake
	${CMAKE_CURRENT_BINARY_DIR}/cowsnapConfigVersion.cmake
	DESTINATION ${cowsnap_package_dir})

if(COWSNAP_WITH_JEMALLOC)
	install(FILES ${PROJECT_SOURCE_DIR}/include/cowsnap-jemalloc.h
		DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
	install(TARGETS cowsnap_jemalloc EXPORT cowsnapJemallocTargets
		LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
	install(EXPORT cowsnapJemallocTargets NAMESPACE cowsnap::
		DESTINATION ${cowsnap_package_dir})
	configure_file(cmake/cowsnap-jemalloc.pc.in cowsnap-jemalloc.pc @ONLY)
	install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cowsnap-jemalloc.pc
		DESTINATION ${cowsnap_pc_dir})
endif()
